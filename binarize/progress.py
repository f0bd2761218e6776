"""How long work tells what it is doing: events to a listener, who may draw a bar, write a line or stay silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ProgressEvent:
    """A moment in a long task.

    Attributes:
        task: what is going on, in a few words: `fine-tuning`, `verifying`, ...
        done, total: in units of the task; `total` 0 means unknown, `done == total` ends it.
        fields: figures worth showing, ready to print (`loss`, `top-1`, `img/s`, ...).
        milestone: worth a line of its own in a log (an epoch's end, say).
    """

    task: str
    done: int
    total: int
    fields: dict[str, str] = field(default_factory=dict)
    milestone: bool = False


Listener = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """The listener that says nothing."""
