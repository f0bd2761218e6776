"""Timing that survives a noisy machine: contenders take turns, and are compared round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from binarize.progress import Listener, ProgressEvent, silent

MINIMUM_RUNS = 20


@dataclass(frozen=True)
class Spread:
    """Times of several runs, in milliseconds.

    Attributes:
        median, minimum, p90: over the runs.
        runs: how many there were.
    """

    median: float
    minimum: float
    p90: float
    runs: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Spread:
        """The times of at least one run."""
        several = times if len(times) > 1 else [*times, *times]
        p90 = statistics.quantiles(several, n=10, method="inclusive")[-1]
        return cls(statistics.median(times), min(times), p90, len(times))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Latency(Spread):
    """Times of one contender.

    Attributes:
        ratio: how many times as fast as the first contender this one is: the median over the rounds of the
            first one's time divided by this one's in the same round.
    """

    ratio: float


def latency(
    turns: Mapping[str, Callable[[], float]],
    *,
    runs: int = 50,
    warmup: int = 5,
    progress: Listener = silent,
) -> dict[str, Latency]:
    """Let contenders take turns (a, b, a, b, ...), so that what slows the machine slows all of them.

    Args:
        turns: name to a call that runs the contender and returns its milliseconds.
        runs: timed runs of each, at least `MINIMUM_RUNS`.
        warmup: runs of each before that do not count.

    Raises:
        ValueError: no contender, or too few runs.
    """
    if not turns or runs < MINIMUM_RUNS:
        raise ValueError(f"timing needs a contender and at least {MINIMUM_RUNS} runs, not {runs}")
    times: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(-warmup, runs):
        for name, run in turns.items():
            milliseconds = run()
            if turn >= 0:
                times[name].append(milliseconds)
        progress(ProgressEvent("timing", max(turn + 1, 0), runs))
    first = next(iter(times.values()))
    return {name: _summary(own, first) for name, own in times.items()}


def _summary(own: list[float], first: list[float]) -> Latency:
    ratios = [a / max(b, 1e-9) for a, b in zip(first, own, strict=True)]
    spread = Spread.of(own)
    return Latency(spread.median, spread.minimum, spread.p90, spread.runs, statistics.median(ratios))
