"""Contenders as processes: what they answer, and what becomes of one that fails, dies or hangs."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from binarize.bench import race as race_module
from binarize.bench.race import Finish, onnx_command, race
from binarize.bench.serve import one_turn, peak_rss
from binarize.errors import BinarizeError, EnvironmentProblem, UnsupportedModelError, UsageError

HELLO = "import json, os, sys, time; from binarize.bench.serve import serve; "


def python(code: str) -> list[str]:
    return [sys.executable, "-c", HELLO + code]


def test_a_turn_is_the_second_of_two_runs() -> None:
    calls: list[int] = []
    assert one_turn(lambda: calls.append(1)) > 0
    assert len(calls) == 2


def test_contenders_are_timed_in_their_own_processes() -> None:
    naps = {"short": 0.0005, "long": 0.002}
    found = race({name: python(f"serve(lambda: lambda: time.sleep({nap}))") for name, nap in naps.items()}, runs=20)
    short, long = found["short"], found["long"]
    assert isinstance(short, Finish) and isinstance(long, Finish)
    assert short.latency.ratio == 1 and long.latency.ratio < 1
    assert long.latency.minimum >= 2.0 > short.latency.minimum >= 0.5


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell the peak memory")
def test_memory_is_each_contenders_own() -> None:
    ballast = bytearray(200_000_000)  # of this process, which the others must not inherit
    held = "serve(lambda: (lambda kept: lambda: kept)(b'x' * 50_000_000))"
    found = race({"small": python("serve(lambda: int)"), "large": python(held)}, runs=20)
    assert peak_rss() > len(ballast)
    small, large = found["small"], found["large"]
    assert isinstance(small, Finish) and isinstance(large, Finish)
    assert small.peak_rss < 150_000_000
    assert 50_000_000 <= large.peak_rss - large.base_rss < 70_000_000


def test_an_interrupted_race_leaves_no_alarm_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: object) -> str:
        raise KeyboardInterrupt

    class Silent(race_module.subprocess.Popen):  # type: ignore[name-defined,misc]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            self.stdout = type("Pipe", (), {"readline": interrupted, "close": lambda self: None})()

        def communicate(self, *args: object) -> None:  # type: ignore[override]
            self.wait()

    monkeypatch.setattr(race_module.subprocess, "Popen", Silent)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        race({"any": python("serve(lambda: int)")}, runs=20)
    for _ in range(100):
        if threading.active_count() == before:
            break
        time.sleep(0.02)
    assert threading.active_count() == before


def test_an_end_that_fails_is_the_contenders_own() -> None:
    answers = 'json.dumps({"base_rss": 1}), *[json.dumps({"nanoseconds": 1000})] * 25'
    dies = f"[(print(answer, flush=True), sys.stdin.readline()) for answer in ({answers})]"
    found = race({"dies": python(dies), "fine": python("serve(lambda: lambda: None)")}, runs=20)
    assert isinstance(found["dies"], BinarizeError) and isinstance(found["fine"], Finish)


def test_an_engine_may_print() -> None:
    found = race({"loud": python("serve(lambda: lambda: print('hello'))")}, runs=20)
    assert isinstance(found["loud"], Finish)


@pytest.mark.parametrize(
    "code, message",
    [
        ("os.abort()", "its process was killed by signal 6"),
        ("print('no module', file=sys.stderr); sys.exit(3)", "its process ended with exit code 3: no module"),
        ("serve(lambda: 1 / 0)", "ZeroDivisionError: division by zero"),
        ("serve(lambda: (lambda runs: lambda: runs.pop() or time.sleep(0))([0] * 7))", "IndexError"),
        ("serve(lambda: (lambda runs: lambda: runs.pop() or os.abort())([1] * 7 + [0]))", "IndexError|signal 6"),
    ],
    ids=["crash", "exit", "refusal", "error while running", "crash while running"],
)
def test_a_lost_contender_is_a_finding_and_the_others_go_on(code: str, message: str) -> None:
    found = race({"lost": python(code), "fine": python("serve(lambda: int)")}, runs=20)
    lost, fine = found["lost"], found["fine"]
    assert isinstance(fine, Finish) and fine.latency.runs == 20
    assert isinstance(lost, UnsupportedModelError)
    assert re.search(message, lost.message)
    assert lost.layer == "lost"


def test_a_process_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "PATIENCE", 0.5)
    found = race({"hung": [sys.executable, "-c", "import time; time.sleep(60)"]}, runs=20)
    assert isinstance(found["hung"], BinarizeError) and "gave no answer" in found["hung"].message


def test_our_own_errors_keep_their_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    monkeypatch.setenv("BINARIZE_ISA", "abacus")
    found = race({"bad": onnx_command(tmp_path / "bad.onnx", 1)}, runs=20)["bad"]
    assert isinstance(found, UnsupportedModelError | EnvironmentProblem)
    assert found.hint is not None and str(os.getpid()) not in found.message


def test_modules_of_the_current_folder_are_none_of_the_standard_librarys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('it ran')")
    if paths := os.environ.get("PYTHONPATH"):  # as it means it here
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep))))
    monkeypatch.chdir(tmp_path)
    found = race({"none": onnx_command(Path("-x.onnx"), 1)}, runs=20)["none"]
    assert isinstance(found, BinarizeError) and "-x.onnx does not exist" in found.message


def test_different_numbers_of_images_are_not_compared() -> None:
    two = python("two = lambda: None; two.images = 2; serve(lambda: two)")
    with pytest.raises(UsageError, match="two 2, one 1"):
        race({"two": two, "one": python("serve(lambda: lambda: None)")}, runs=20)
    found = race({"two": two}, runs=20)["two"]
    assert isinstance(found, Finish) and found.images == 2
