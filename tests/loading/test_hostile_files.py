"""A corpus of attacking files, loaded in a process that has little address space: nothing runs, fills or crashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hostile
import pytest

from binarize.errors import UsageError
from binarize.loading import load_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")


@pytest.fixture(scope="session")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    folder = tmp_path_factory.mktemp("hostile")
    hostile.write_corpus(folder)
    before = {path.name for path in folder.iterdir()}
    command = [sys.executable, hostile.__file__, "load", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in folder.iterdir()} == before, "a file left something behind"
    return json.loads(done.stdout)


@pytest.mark.parametrize("file", hostile.FILES)
def test_an_attack_ends_in_a_clear_error(outcome: dict[str, list], file: str) -> None:
    kind, message, seconds, growth = outcome[file]
    assert kind == "UnsupportedModelError", message
    assert message and "Traceback" not in message
    assert seconds < 60
    assert growth < 512 << 20


def test_commands_are_named_and_never_run(outcome: dict[str, list]) -> None:
    named = {file for file, (_, message, *_) in outcome.items() if "would run os.system" in message}
    assert {file for file in hostile.FILES if file.startswith("runs a command")} <= named


def test_the_attack_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    monkeypatch.chdir(tmp_path)
    pickle.loads(hostile.pickled(hostile.RUN_PICKLE))
    assert (tmp_path / "MARKER").exists()


def test_links_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    for file, words in {
        "zero.pt": "not a regular file",
        "loop.pt": "cannot be used",
        "pipe.pt": "not a regular",
    }.items():
        with pytest.raises(UsageError, match=words):
            load_model(tmp_path / file)
