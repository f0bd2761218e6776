"""Every committed row says how it was measured."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest

from benchmarks import records
from binarize.bench.race import Finish
from binarize.bench.timing import Latency
from binarize.errors import UnsupportedModelError


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path)


def saved(**values: object) -> records.Row:
    records.save("kind", "subject", 1, values, {"larq": "0.14.0"})
    (row,) = records.read("kind")
    return row


def test_a_row_names_cores_scheduling_and_what_ran_elsewhere() -> None:
    row = saved(runs=3, pinned=1)
    assert (row["runs"], row["pinned"], row["scheduling"]) == (3, 1, records.scheduling())
    assert row["machine"]["larq"] == "0.14.0" and row["machine"]["cpu"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system keeps no process on its cores")
def test_a_kind_that_pins_nothing_says_on_how_many_cores_it_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for allowed, pinned in (({1}, 1), ({0, 1, 2, 3}, 0)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, allowed=allowed: allowed)
        assert saved()["pinned"] == pinned


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system tells no policy")
@pytest.mark.parametrize(
    ("policy", "priority", "name"),
    [
        ("SCHED_OTHER", 0, "normal"),
        ("SCHED_RR", 1, "SCHED_RR 1"),
        ("SCHED_FIFO", 50, "SCHED_FIFO 50"),
        ("SCHED_BATCH", 0, "SCHED_BATCH"),
        ("SCHED_IDLE", 0, f"policy {getattr(os, 'SCHED_IDLE', '')}"),
    ],
)
def test_policies_have_their_names(policy: str, priority: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = getattr(os, policy)
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: number)
    monkeypatch.setattr(os, "sched_getparam", lambda _: os.sched_param(priority))
    assert records.scheduling() == name
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: number | os.SCHED_RESET_ON_FORK)
    assert records.scheduling() == "normal", "contenders are processes of their own"


def test_rows_of_before_are_read_and_replaced(tmp_path: Path) -> None:
    """They have no policy, and some no cores."""
    cpu = records.main_cpu("kind")
    old = {"subject": "subject", "threads": 1, "source": "0000000", "machine": {"cpu": cpu}, "runs": 30}
    (tmp_path / "kind.json").write_text(json.dumps([old]), encoding="utf-8")
    assert records.find("kind", "subject", 1, cpu) == old
    assert saved(runs=3)["scheduling"] == records.scheduling()


def test_a_row_is_json_also_where_the_first_contender_failed() -> None:
    beside = Finish(Latency(1.0, 0.9, 1.1, 20, float("nan"), float("nan"), float("nan")), 0, 0)
    found = records.finishes({"first": UnsupportedModelError("no"), "second": beside})
    assert json.loads(json.dumps(found, allow_nan=False))["second"]["ratio"] is None


@pytest.mark.parametrize("count", ["19", "0", "-30", "x"])
def test_too_few_runs_are_refused_before_anything_is_made(count: str) -> None:
    assert records.timed_runs("20") == 20
    with pytest.raises(argparse.ArgumentTypeError, match="20 or more"):
        records.timed_runs(count)
