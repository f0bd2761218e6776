"""The zoo's machinery, on models that succeed, fail, die and hang."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from binarize.errors import UsageError
from binarize.progress import ProgressEvent
from binarize.zoo import Settings, Table, entries, run_zoo
from binarize.zoo.runner import result_path

NETS = """
import os
import time
import torch
from torch import nn

__all__: list[str] = ["good", "broken", "dies", "hangs", "counts"]

def good():
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

def broken():
    raise ValueError("not today")

def dies():
    os.write(1, b"no text: \\xff\\xfe")
    os._exit(7)

def hangs():
    time.sleep(600)

class Nothing(nn.Module):
    def forward(self, x):
        return x.mean()

def counts():
    return nn.Sequential(nn.Conv2d(3, 8, 3), Nothing())
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("zoo")
    file = folder / "nets.py"
    file.write_text(NETS)
    events: list[ProgressEvent] = []
    settings = Settings(folder / "run", until="surgery", jobs=2, timeout=20)
    outcomes = run_zoo(entries([str(file)]), settings, events.append)
    return file, settings, {outcome.name: outcome for outcome in outcomes}, events


@pytest.mark.slow
def test_every_fate_has_its_verdict(zoo) -> None:
    _, _, outcomes, events = zoo
    assert outcomes["good"].verdict == "surgery"
    assert outcomes["good"].inputs == "2x3x64x64"
    assert (outcomes["good"].convs, outcomes["good"].binarized, outcomes["good"].kept) == (2, 1, {"stem": 1})
    assert "build: " in outcomes["broken"].verdict and "not today" in outcomes["broken"].verdict
    assert outcomes["dies"].verdict == "build: the process died (exit code 7)"
    assert outcomes["hangs"].verdict == "build: took longer than 20 s"
    assert outcomes["counts"].binarized == 0
    assert (events[-1].done, events[-1].total) == (5, 5)


@pytest.mark.slow
def test_finished_models_are_skipped_until_more_is_asked_or_restart(zoo) -> None:
    file, settings, _, _ = zoo
    good = entries([str(file)], models=["good"])
    events: list[ProgressEvent] = []
    run_zoo(good, settings, events.append)
    assert events == []
    further = Settings(settings.folder, until="train", timeout=60)
    assert run_zoo(good, further, events.append)[0].verdict == "train"
    assert len(events) == 1
    run_zoo(good, Settings(settings.folder, until="train", timeout=60, restart=True), events.append)
    assert len(events) == 2


@pytest.mark.slow
def test_the_table_says_it_all(zoo) -> None:
    _, _, outcomes, _ = zoo
    table = Table(list(outcomes.values()), {"torch": "2"})
    found = json.loads(table.to_json())
    (coverage,) = found["summary"]["coverage"].values()
    assert coverage == {"models": 5, "build": 2, "surgery": 2, "train": 0, "export": 0, "run": 0}
    assert {failure["model"].rpartition(":")[2] for failure in found["summary"]["failures"]} == {
        "broken",
        "dies",
        "hangs",
    }
    page = table.to_markdown()
    assert "## Exceptions" in page and "took longer than 20 s" in page
    assert "| good | 2x3x64x64 | 2 | 1 |" in page


@pytest.mark.slow
def test_what_took_too_long_is_tried_again_with_more_time(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(NETS)
    hangs = entries([str(file)], models=["hangs"])
    events: list[ProgressEvent] = []
    for timeout, verdict in ((2, "2 s"), (1, "2 s"), (3, "3 s")):
        (outcome,) = run_zoo(hangs, Settings(tmp_path / "run", until="build", timeout=timeout), events.append)
        assert outcome.verdict == f"build: took longer than {verdict}"
    assert len(events) == 2


def test_a_station_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no station 'bake'"):
        run_zoo([], Settings(tmp_path, until="bake"))


def test_nothing_converted_is_a_table_too() -> None:
    assert "Nothing was converted" in Table([]).to_markdown()


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_time_that_is_none(tmp_path: Path, timeout: float) -> None:
    with pytest.raises(UsageError, match="seconds"):
        run_zoo([], Settings(tmp_path, timeout=timeout))


@pytest.mark.slow
def test_files_of_like_names_keep_results_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, channels in (("a b", 8), ("a_b", 16)):
        Path(folder).mkdir()
        net = f"nn.Sequential(nn.Conv2d(3, {channels}, 3), nn.ReLU(), nn.Conv2d({channels}, 8, 3))"
        Path(folder, "n.py").write_text(f"from torch import nn\n__all__ = ['net']\ndef net():\n    return {net}\n")
    chosen = entries(["a b/n.py", "a_b/n.py", "a b/n.py"])
    settings = Settings(tmp_path / "run", until="build", jobs=2, timeout=float("inf"))
    events: list[ProgressEvent] = []
    for _ in range(2):
        outcomes = run_zoo(chosen, settings, events.append)
        assert [outcome.spec for outcome in outcomes] == ["a b/n.py:net", "a_b/n.py:net"]
        assert outcomes[0].float_bytes < outcomes[1].float_bytes
    assert len(events) == 2
    for damaged in ('{"outcome": {"until": "roof"}}', "[]", "{"):
        result_path(chosen[0], settings.folder).write_text(damaged)
        assert run_zoo(chosen, settings)[0].verdict == "build"
