"""What the kernels' speed is compared with: measured by a small C++ program, shown above each table."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from benchmarks import kernels, records, render


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
def test_loops_write_the_right_bits_and_every_depth_has_a_speed() -> None:
    found = kernels.measure_ceiling()  # the program fails if a loop wrote a wrong bit
    assert found["ghz"] > 0
    assert set(found["limits"]) == set(found["mac_per_cycle"]) & {"avx2", "avx512"}
    for limits in found["limits"].values():
        assert list(limits) == ["64", "128", "256", "512", "576", "1024"]
        assert all(limit > 0 for limit in limits.values())


def test_without_a_compiler_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert kernels.measure_ceiling() == {"ghz": None, "mac_per_cycle": {}, "limits": {}}


@pytest.mark.parametrize(
    ("limits", "shown"),
    [
        ({}, "ceiling 600 MAC/cycle:"),  # as rows of before
        ({"limits": None}, "ceiling 600 MAC/cycle:"),
        (
            {"limits": {"64": 390.4, "128": 499.0}},
            "ceiling 600 MAC/cycle; a loop with its epilogue 390 at K = 64, 499 at K = 128:",
        ),
    ],
)
def test_limits_are_shown_where_a_row_has_them(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], shown: str
) -> None:
    row = {"subject": "avx512", "ghz": 4.0, "machine": {"cpu": "some CPU"}, "ceiling": 600.0, "layers": [], **limits}
    monkeypatch.setattr(records, "read", lambda kind: [row])
    assert render.PARTS["kernels"]().splitlines()[0] == f"`avx512`, 4.00 GHz, some CPU; {shown}"
