"""Rows about other engines: their runs, and the versions of environments that are not this one."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from pathlib import Path
from platform import python_version
from types import SimpleNamespace

import pytest

from benchmarks import larq_worker, peers, records
from binarize.bench.race import Finish
from binarize.bench.timing import Latency
from binarize.errors import BinarizeError, EnvironmentProblem

VERSIONS = {"larq-compute-engine": "0.16.0", "larq": "0.14.0", "tensorflow": "2.15.1", "Larq's Python": "3.11.9"}


def interpreter(folder: Path, script: str) -> str:
    """A program in a Python's place."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_larqs_environment_is_asked_once(tmp_path: Path) -> None:
    count, answer = tmp_path / "count", tmp_path / "answer"
    answer.write_text(json.dumps(VERSIONS), encoding="utf-8")
    python = interpreter(tmp_path, f"echo asked >> '{count}'; echo noise; cat '{answer}'")
    for _ in range(2):
        assert peers.larq_versions(python) == VERSIONS
        assert peers.larq("bireal18", python) == [python, "-m", "benchmarks.larq_worker", "bireal18"]
    assert count.read_text(encoding="utf-8").split() == ["asked"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_an_environment_without_larq_is_skipped_and_names_nothing(tmp_path: Path) -> None:
    for python in (None, interpreter(tmp_path, "exit 1")):
        assert peers.larq_versions(python) == {}
        assert isinstance(peers.larq("bireal18", python), EnvironmentProblem)


def test_the_worker_tells_what_its_environment_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda _: SimpleNamespace(__version__="2.15.1"))
    monkeypatch.setattr(importlib.metadata, "version", VERSIONS.__getitem__)
    monkeypatch.setattr(sys, "argv", ["larq_worker", "versions"])
    larq_worker.main()
    assert json.loads(capsys.readouterr().out) == {**VERSIONS, "Larq's Python": python_version()}


def test_a_row_has_the_runs_that_each_contender_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    monkeypatch.setattr(peers, "larq_versions", lambda _: VERSIONS)
    commands: peers.Commands = {"binary": ["run"], "Larq binary": EnvironmentProblem("skipped")}
    monkeypatch.setattr(peers, "network", lambda *_: commands)
    monkeypatch.setattr(peers, "layer", lambda *_: commands)

    def race(ready: peers.Commands, runs: int, warmup: int) -> dict[str, Finish | BinarizeError]:
        return {name: Finish(Latency(1.0, 1.0, 1.0, runs, 1.0, 1.0, 1.0), 2, 1) for name in ready}

    monkeypatch.setattr(peers, "race", race)
    layer = next(iter(peers.DENSE))
    monkeypatch.setattr(sys, "argv", ["peers", "resnet18", layer, "--runs", "20"])
    peers.main()
    rows = {row["subject"]: row for row in records.read(peers.KIND)}
    for subject, runs in (("resnet18", 20), (layer, 80)):
        row = rows[subject]
        assert row["runs"] == row["contenders"]["binary"]["runs"] == runs
        assert row["contenders"]["Larq binary"] == {"failed": "skipped"}
        assert {"pinned", "scheduling"} <= set(row)
        assert VERSIONS.items() <= row["machine"].items()


@pytest.mark.parametrize("subjects, fits", [(["resnet18"], False), ([next(iter(peers.DENSE))], True), ([], False)])
def test_too_few_runs_are_refused_before_anything_is_made(
    subjects: list[str], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made(Exception):
        pass

    def made(*_: object) -> None:
        raise Made

    monkeypatch.setattr(peers, "network", made)
    monkeypatch.setattr(peers, "layer", made)
    monkeypatch.setattr(sys, "argv", ["peers", *subjects, "--runs", "5", "--again"])
    with pytest.raises(Made if fits else SystemExit):
        peers.main()
