"""Timing with made-up turns: order, warm-up and statistics."""

from __future__ import annotations

import numpy as np
import pytest

from binarize.bench import latency
from binarize.bench.timing import Spread
from binarize.progress import ProgressEvent


class Machine:
    """Turns that take a settled time."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def turn(self, name: str, milliseconds: float) -> float:
        self.calls.append(name)
        return milliseconds


@pytest.mark.parametrize("runs", [1, 2, 20])
def test_a_percentile_of_equal_times_is_that_time(runs: int) -> None:
    """A profiler counts microseconds, so that runs of a short layer are often equal to the last digit."""
    for microseconds in range(1, 400):
        time = microseconds / 1000
        assert Spread.of([time] * runs) == Spread(time, time, time, runs)


def test_contenders_take_turns_after_warming_up() -> None:
    machine = Machine()
    turns = {name: lambda name=name: machine.turn(name, 1.0) for name in ("a", "b")}
    found = latency(turns, runs=20, warmup=3)
    assert machine.calls == ["a", "b"] * 23
    assert found["a"].runs == found["b"].runs == 20


def test_ratios_compare_with_the_first_contender() -> None:
    found = latency({"binary": lambda: 2.0, "float": lambda: 6.0}, runs=20)
    assert (found["binary"].median, found["float"].median) == (2.0, 6.0)
    assert found["binary"].ratio == 1.0
    assert found["float"].ratio == found["float"].ratio_low == found["float"].ratio_high == pytest.approx(1 / 3)


def test_ratios_know_their_noise() -> None:
    noise = np.random.default_rng(0)
    turns = {name: lambda t=t: t * noise.lognormal(sigma=0.2) for name, t in {"a": 1.0, "same": 1.0, "b": 1.5}.items()}
    found = latency(turns, runs=50, warmup=0)
    assert found["same"].ratio_low < 1 < found["same"].ratio_high
    assert 0.5 < found["b"].ratio_low < found["b"].ratio < found["b"].ratio_high < 0.8


def test_a_slow_stretch_hits_all_and_leaves_the_ratio() -> None:
    noise = iter([1, 1, 10, 10] * 100)
    found = latency({"a": lambda: 1.0 * next(noise), "b": lambda: 2.0 * next(noise)}, runs=40, warmup=0)
    assert found["b"].ratio == found["b"].ratio_low == found["b"].ratio_high == pytest.approx(0.5)
    assert found["a"].minimum == 1.0 and found["a"].p90 == pytest.approx(10)


@pytest.mark.parametrize("runs", [0, 19])
def test_few_runs_are_refused(runs: int) -> None:
    with pytest.raises(ValueError, match="at least 20 runs"):
        latency({"a": lambda: 1.0}, runs=runs)
    with pytest.raises(ValueError, match="needs a contender"):
        latency({}, runs=20)


def test_progress_ends() -> None:
    events: list[ProgressEvent] = []
    latency({"a": lambda: 1.0}, runs=20, warmup=2, progress=events.append)
    assert [events[0].done, events[-1].done, events[-1].total] == [0, 20, 20]
