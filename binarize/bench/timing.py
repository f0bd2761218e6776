"""Timing that survives a noisy machine: contenders take turns, and ratios say how sure they are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from binarize.progress import Listener, ProgressEvent, silent

MINIMUM_RUNS = 20
RESAMPLES = 2000


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
        return cls(statistics.median(times), min(times), float(np.quantile(times, 0.9)), len(times))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Latency(Spread):
    """Times of one contender.

    Attributes:
        ratio: how many times as fast as the first contender this one is: the first one's median over this one's.
        ratio_low, ratio_high: the ratio's 95 % confidence interval, by resampling whole rounds (bootstrap), so that
            what slowed a round slows both. It knows the noise of this run, not that of another one.
    """

    ratio: float
    ratio_low: float
    ratio_high: float


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
    spread = Spread.of(own)
    rounds = np.random.default_rng(0).integers(0, len(own), (RESAMPLES, len(own)))
    medians = [np.median(np.array(times)[rounds], axis=1) for times in (first, own)]
    low, high = np.quantile(medians[0] / medians[1], (0.025, 0.975))
    ratio = statistics.median(first) / spread.median
    return Latency(spread.median, spread.minimum, spread.p90, spread.runs, ratio, float(low), float(high))
