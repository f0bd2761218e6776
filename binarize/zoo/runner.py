"""Many models over several processes: each in a process of its own, with a time limit, its result in a file."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from binarize.config import Config
from binarize.errors import UsageError
from binarize.files import write_text
from binarize.progress import Listener, ProgressEvent, silent
from binarize.zoo.entries import LIBRARIES, Entry
from binarize.zoo.stations import STATIONS, Outcome, send

TASK = "zoo"
LONGEST_WAIT = 3600.0
"""Seconds; operating systems take no endless times."""
_ENTERED = "== {}"
# What every model's process needs; the fork server imports it once.
_PRELOAD = ["torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "binarize.zoo.stations"]


@dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        folder: one JSON file per model goes there, and its log.
        until: the last station.
        jobs: processes at a time; each computes with one thread.
        timeout: seconds for one model.
        config: of the conversion.
        restart: run finished models again.
    """

    folder: Path
    until: str = STATIONS[-1]
    jobs: int = 1
    timeout: float = 600.0
    config: Config = field(default_factory=Config)
    restart: bool = False


def run_zoo(chosen: Iterable[Entry], settings: Settings, progress: Listener = silent) -> list[Outcome]:
    """Run the models that have no result yet, or had less time than they get now; the outcomes of all, in their order.

    An interrupt leaves the finished models' results, and the next call goes on from there.
    """
    if settings.until not in STATIONS:
        raise UsageError(f"there is no station {settings.until!r}", hint=f"they are {', '.join(STATIONS)}")
    if not settings.timeout > 0:
        raise UsageError(f"a model gets {settings.timeout} seconds", hint="for example --timeout 600, or inf")
    chosen = list(dict.fromkeys(chosen))
    settings.folder.mkdir(parents=True, exist_ok=True)
    waiting = [entry for entry in chosen if settings.restart or _finished(entry, settings) is None]
    _Pool(settings, progress, len(chosen)).run(waiting)
    outcomes = [_finished(entry, settings) for entry in chosen]
    return [outcome for outcome in outcomes if outcome is not None]


def result_path(entry: Entry, folder: Path) -> Path:
    """The file that keeps a model's outcome. What is left out of a spelling, or looks like it, goes into a number."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", entry.spec)
    if entry.source not in LIBRARIES:
        name += f"-{hashlib.sha256(entry.spec.encode(errors='surrogateescape')).hexdigest()[:8]}"
    return folder / f"{name}.json"


def _log_path(entry: Entry, folder: Path) -> Path:
    return result_path(entry, folder).with_suffix(".log")


def _finished(entry: Entry, settings: Settings) -> Outcome | None:
    """A result that was to come as far as is asked now, with the same configuration, and not short of today's time."""
    try:
        kept = json.loads(result_path(entry, settings.folder).read_text(encoding="utf-8"))
        outcome = Outcome(**{key: value for key, value in kept["outcome"].items() if key != "verdict"})
        far_enough = STATIONS.index(outcome.until) >= STATIONS.index(settings.until)
        same = (outcome.spec, kept["config"]) == (entry.spec, settings.config.to_dict())
        tried = float(kept.get("timeout", math.inf)) >= settings.timeout
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return outcome if far_enough and same and tried else None


def _keep(entry: Entry, settings: Settings, outcome: Outcome, timeout: float | None = None) -> None:
    """Keep an outcome; `timeout` are the seconds that were not enough for it."""
    document: dict[str, Any] = {"outcome": outcome.to_dict(), "config": settings.config.to_dict()}
    if timeout is not None:
        document["timeout"] = timeout
    write_text(result_path(entry, settings.folder), json.dumps(document, indent=1) + "\n")


@dataclass
class _Running:
    entry: Entry
    process: BaseProcess
    started: float


class _Pool:
    """Starts a process per model, at most `jobs` at a time, and ends those that take too long."""

    def __init__(self, settings: Settings, progress: Listener, total: int) -> None:
        self.settings, self.progress, self.total = settings, progress, total
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self.context.set_forkserver_preload(_PRELOAD)
        self.running: list[_Running] = []
        self.failed = 0

    def run(self, waiting: list[Entry]) -> None:
        todo = list(reversed(waiting))
        done = self.total - len(todo)
        try:
            while todo or self.running:
                while todo and len(self.running) < self.settings.jobs:
                    self._start(todo.pop())
                for ended in self._ended():
                    done += 1
                    self._report(ended, done)
        finally:
            for left in self.running:
                left.process.kill()

    def _start(self, entry: Entry) -> None:
        result_path(entry, self.settings.folder).unlink(missing_ok=True)
        process = self.context.Process(target=_in_process, args=(entry, self.settings), daemon=True)
        process.start()
        self.running.append(_Running(entry, process, time.monotonic()))

    def _ended(self) -> list[_Running]:
        """Wait for a process to end or to exceed its time; the ended ones, taken off the list."""
        oldest = min(one.started for one in self.running)
        patience = max(0.0, oldest + self.settings.timeout - time.monotonic())
        wait([one.process.sentinel for one in self.running], timeout=min(patience, LONGEST_WAIT) + 0.1)
        ended = []
        for one in self.running:
            late = time.monotonic() - one.started > self.settings.timeout
            if late and one.process.is_alive():
                one.process.kill()
                one.process.join()
                timeout = self.settings.timeout
                self._give_up(one, f"took longer than {timeout:.0f} s", timeout)
                ended.append(one)
            elif not one.process.is_alive():
                one.process.join()
                if _finished(one.entry, self.settings) is None:
                    self._give_up(one, f"the process died (exit code {one.process.exitcode})")
                ended.append(one)
        self.running = [one for one in self.running if one not in ended]
        return ended

    def _give_up(self, one: _Running, reason: str, timeout: float | None = None) -> None:
        """Record what the process could not, in `timeout` seconds if that was the reason."""
        entry, log = one.entry, _log_path(one.entry, self.settings.folder)
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        entered = re.findall(_ENTERED.format("(.+)"), said)
        outcome = Outcome(entry.spec, entry.name, entry.family, self.settings.until, failed_at="build", reason=reason)
        if len(entered) > 1:
            outcome.reached, outcome.failed_at = entered[-2:]
        _keep(entry, self.settings, outcome, timeout)

    def _report(self, one: _Running, done: int) -> None:
        outcome = _finished(one.entry, self.settings)
        assert outcome is not None
        self.failed += bool(outcome.failed_at)
        seconds = f"{time.monotonic() - one.started:.0f} s"
        fields = {
            "model": one.entry.name,
            "verdict": outcome.verdict[:100],
            "time": seconds,
            "failed": str(self.failed),
        }
        self.progress(ProgressEvent(TASK, done, self.total, fields, milestone=True))


def _in_process(entry: Entry, settings: Settings) -> None:
    """The body of a model's process: one thread, prints into its log."""
    import torch

    torch.set_num_threads(1)
    with _log_path(entry, settings.folder).open("w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        with tempfile.TemporaryDirectory() as scratch, suppress(KeyboardInterrupt):
            outcome = send(entry, settings.until, Path(scratch), settings.config, enter=_say_entered)
            _keep(entry, settings, outcome)


def _say_entered(station: str) -> None:
    print(_ENTERED.format(station), flush=True)
