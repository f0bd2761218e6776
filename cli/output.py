"""The one object that commands print through.

Results go to stdout, everything about the way there (progress, notes, warnings, errors) to stderr.

| mode  | stdout | stderr |
|---|---|---|
| human | text and tables | progress, notes, warnings, errors |
| json  | exactly one JSON document, also for an error; warnings are its key `warnings` | progress |
| quiet | the one thing a script wants: a path or a number | warnings, errors |
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from binarize.cli.progress import BarListener, LineListener
from binarize.errors import BinarizeError
from binarize.progress import Listener, silent

Mode = Literal["human", "json", "quiet"]
PLAIN_WIDTH = 160
"""Columns of a table that is piped or redirected, where there is no terminal to ask."""


class Output:
    """Prints for one command.

    Args:
        mode: see the module.
        command: goes into JSON documents as `command`.
        stdout, stderr: by default the process's own, as they are now.
    """

    def __init__(self, mode: Mode, command: str, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.mode, self.command = mode, command
        self.stdout, self.stderr = stdout or sys.stdout, stderr or sys.stderr
        self._out, self._err = _console(self.stdout), _console(self.stderr)
        self._warnings: list[str] = []
        self._progress: BarListener | LineListener | None = None
        self.resumes: str | None = None
        """What to say about going on, if the command is interrupted now."""

    @property
    def progress(self) -> Listener:
        """Where long work reports: bars on a terminal, lines elsewhere, nothing when quiet."""
        if self.mode == "quiet":
            return silent
        if self._progress is None:
            self._progress = BarListener(self._err) if self._err.is_terminal else LineListener(self._err)
        return self._progress

    def text(self, text: str = "", style: str = "") -> None:
        """A line or paragraph of the result, for people."""
        if self.mode == "human":
            self.close()
            self._out.print(Text(text, style=style), soft_wrap=True)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, width: int | None = None
    ) -> None:
        """A table of the result, for people; columns of numbers are aligned to the right.

        Cells fold so that a row fits the terminal, or `width` columns.
        """
        if self.mode == "human":
            self.close()
            if title:
                self._out.print(Text(title, style="bold"), soft_wrap=True)
            out = self._out if width is None else _console(self.stdout, width)
            out.print(_table(columns, [[str(cell) for cell in row] for row in rows]))

    def result(self, document: dict[str, Any], brief: object = "") -> None:
        """The whole result: `document` in JSON mode, `brief` in quiet mode. Once, at the end."""
        self.close()
        if self.mode == "json":
            self._document({"command": self.command, **document, "warnings": self._warnings})
        elif self.mode == "quiet" and brief != "":
            print(brief, file=self.stdout)

    def note(self, text: str) -> None:
        """Something worth knowing that is not the result."""
        if self.mode == "human":
            self.close()
            self._err.print(Text(text, style="dim"), soft_wrap=True)

    def warning(self, text: str) -> None:
        """Something the user should act on, though the command goes on."""
        self._warnings.append(text)
        if self.mode != "json":
            self.close()
            self._err.print(Text.assemble(("warning: ", "bold yellow"), text), soft_wrap=True)

    def error(self, error: BinarizeError, exit_code: int | None = None) -> None:
        """Why the command failed, and the next step."""
        self.close()
        if self.mode == "json":
            code = error.exit_code if exit_code is None else exit_code
            document = {**error.to_dict(), "exit_code": code}
            self._document({"command": self.command, **document, "warnings": self._warnings})
            return
        where = f"{error.layer}: " if error.layer else ""
        self._err.print(Text.assemble(("error: ", "bold red"), where, error.message), soft_wrap=True)
        if error.hint:
            self._err.print(Text.assemble(("hint: ", "bold"), error.hint), soft_wrap=True)

    def close(self) -> None:
        """End running progress bars, so that what follows stands below them."""
        if self._progress is not None:
            self._progress.close()

    def _document(self, document: dict[str, Any]) -> None:
        print(json.dumps(_jsonable(document), indent=1, allow_nan=False), file=self.stdout)


def _console(stream: TextIO, width: int | None = None) -> Console:
    width = width or (None if stream.isatty() else PLAIN_WIDTH)
    return _Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave a reader that went away to `app`, which does not count it as a failure; rich would exit with 1."""
        raise BrokenPipeError


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None)
    for index, column in enumerate(columns):
        numbers = all(_is_number(row[index]) for row in rows)
        table.add_column(Text(column, style="bold"), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _is_number(cell: str) -> bool:
    """Whether a cell is a figure, perhaps with a unit, or holds the place of one."""
    return cell in ("", "-") or cell.lstrip("+-")[:1].isdigit()


def _jsonable(value: Any) -> Any:
    """`value` as JSON can say it: tuples as lists, NaN and infinity as null, anything else as its text."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
