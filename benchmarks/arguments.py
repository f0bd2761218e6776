"""Values on the benchmarks' command lines."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def at_least(lowest: int) -> Callable[[str], int]:
    """For argparse: a whole number of `lowest` or more."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is no number of {lowest} or more")
        return int(text)

    return number
