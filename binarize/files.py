"""Writing so that a crash, a full disk or Ctrl-C leaves the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from binarize.errors import EnvironmentProblem, UsageError


@contextlib.contextmanager
def atomic_output(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it if the block ends well and vanishes if it does not.

    Raises:
        UsageError: the folder does not exist or cannot be written to.
        EnvironmentProblem: writing failed, for example on a full disk.
    """
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write the file: {error.strerror or error}", layer=str(path), hint="check free space and permissions"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raise UsageError now if `path` could not be written later: before hours of work, not after."""
    path = Path(path)
    if path.is_dir():
        raise UsageError("the output is a directory", layer=str(path), hint="give a file name")
    _temporary_beside(path).unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_output(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _temporary_beside(path: Path) -> Path:
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise UsageError(
            f"cannot write there: {error.strerror}", layer=str(path), hint="give an existing, writable folder"
        ) from error
    os.close(handle)
    return Path(name)
