"""Ctrl-C and a polite kill wait for the end of a training step, so that what is saved is never half a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupt:
    """Whether the user has asked to stop. A second request does not wait."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if a request is waiting; called where the state is whole."""
        if self.requested:
            self.requested = False
            raise KeyboardInterrupt

    def _request(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Interrupt]:
    """SIGINT and SIGTERM set the yielded flag instead of raising wherever the program happens to be.

    Only the main thread can take signals; elsewhere the flag is never set and nothing changes.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    previous = {number: signal.signal(number, interrupt._request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
