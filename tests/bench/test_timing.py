"""Timing with a clock of our own: order, warm-up and statistics."""

from __future__ import annotations

import pytest

from binarize.bench import latency
from binarize.progress import ProgressEvent


class Machine:
    """Calls that take a settled time, and a clock that knows it."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[str] = []

    def call(self, name: str, nanoseconds: int) -> None:
        self.calls.append(name)
        self.now += nanoseconds

    def clock(self) -> int:
        return self.now


def test_contenders_take_turns_after_warming_up() -> None:
    machine = Machine()
    contenders = {name: lambda name=name: machine.call(name, 1000) for name in ("a", "b")}
    found = latency(contenders, runs=20, warmup=3, clock=machine.clock)
    assert machine.calls == ["a", "b"] * 23
    assert found["a"].runs == found["b"].runs == 20


def test_ratios_compare_with_the_first_contender() -> None:
    machine = Machine()
    contenders = {
        "binary": lambda: machine.call("binary", 2_000_000),
        "float": lambda: machine.call("float", 6_000_000),
    }
    found = latency(contenders, runs=20, clock=machine.clock)
    assert (found["binary"].median, found["float"].median) == (2.0, 6.0)
    assert found["binary"].ratio == 1.0
    assert found["float"].ratio == pytest.approx(1 / 3)


def test_a_slow_stretch_hits_all_and_leaves_the_ratio() -> None:
    machine = Machine()
    noise = iter([1, 1, 10, 10] * 100)

    def run(name: str, nanoseconds: int) -> None:
        machine.call(name, nanoseconds * next(noise))

    contenders = {"a": lambda: run("a", 1000), "b": lambda: run("b", 2000)}
    found = latency(contenders, runs=40, warmup=0, clock=machine.clock)
    assert found["b"].ratio == pytest.approx(0.5)
    assert found["a"].minimum == 0.001 and found["a"].p90 == pytest.approx(0.01)


@pytest.mark.parametrize("runs", [0, 19])
def test_few_runs_are_refused(runs: int) -> None:
    with pytest.raises(ValueError, match="at least 20 runs"):
        latency({"a": lambda: None}, runs=runs)
    with pytest.raises(ValueError, match="needs a contender"):
        latency({}, runs=20)


def test_progress_ends() -> None:
    events: list[ProgressEvent] = []
    latency({"a": lambda: None}, runs=20, warmup=2, progress=events.append)
    assert [events[0].done, events[-1].done, events[-1].total] == [0, 20, 20]
