"""Progress of long work on stderr: rich bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from binarize.progress import ProgressEvent

LINE_SECONDS = 10.0
"""At most one line of progress in this time, milestones excepted."""


class BarListener:
    """One bar at a time; a milestone leaves a line above it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Progress | None = None
        self._task: tuple[str, TaskID] | None = None

    def __call__(self, event: ProgressEvent) -> None:
        bars = self._bars or self._start()
        if self._task is None or self._task[0] != event.task:
            if self._task is not None:
                bars.remove_task(self._task[1])
            self._task = (event.task, bars.add_task(event.task, total=event.total or None, figures=""))
        figures = Text(_figures(event))
        bars.update(self._task[1], completed=event.done, total=event.total or None, figures=figures)
        if event.milestone:
            bars.console.print(Text(_line(event)), soft_wrap=True)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._task = None, None

    def _start(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(24), TaskProgressColumn())
        self._bars = Progress(*columns, TextColumn("{task.fields[figures]}"), console=self.console, transient=True)
        self._bars.start()
        return self._bars


class LineListener:
    """A line per milestone and per ended task, else at most one every `LINE_SECONDS`."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self._task, self._ended = "", False
        self._spoken = clock()

    def __call__(self, event: ProgressEvent) -> None:
        if event.task != self._task:
            self._task, self._ended = event.task, False
        ends = event.total > 0 and event.done >= event.total
        due = self.clock() - self._spoken >= LINE_SECONDS
        if event.milestone or due or (ends and not self._ended):
            self.console.print(Text(_line(event)), soft_wrap=True)
            self._spoken = self.clock()
        self._ended = self._ended or ends

    def close(self) -> None:
        """Nothing is left open."""


def _line(event: ProgressEvent) -> str:
    share = f" {event.done / event.total:4.0%}" if event.total else f" {event.done}" if event.done else ""
    figures = _figures(event)
    return f"{event.task}{share}" + (f"  {figures}" if figures else "")


def _figures(event: ProgressEvent) -> str:
    return "  ".join(f"{name} {value}" for name, value in event.fields.items())
