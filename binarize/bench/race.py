"""Contenders in processes of their own, timed in turns."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from binarize import errors
from binarize.bench.timing import Latency, latency
from binarize.errors import BinarizeError, UnsupportedModelError, UsageError
from binarize.progress import Listener, ProgressEvent, silent

PATIENCE = 600.0
"""Seconds without an answer after which a contender is given up."""


@dataclass(frozen=True)
class Finish:
    """What a contender achieved.

    Attributes:
        latency: of one run.
        peak_rss: the process's largest resident memory in bytes, interpreter and libraries included; 0: unknown.
        base_rss: the same before the model was opened.
        images: of each run.
    """

    latency: Latency
    peak_rss: int
    base_rss: int
    images: int = 1


def onnx_command(path: str | Path, threads: int, batch: int | None = None) -> list[str]:
    """What serves an ONNX file in ONNX Runtime with our op library, on `batch` images or as many as the file says."""
    options = ["--threads", str(threads), *([] if batch is None else ["--batch", str(batch)])]
    # -P: a random.py in the current folder is none of the standard library's modules
    return [sys.executable, "-P", "-m", "binarize.bench.serve", *options, "--", str(path)]


def race(
    commands: Mapping[str, Sequence[str]], *, runs: int = 50, warmup: int = 5, progress: Listener = silent
) -> dict[str, Finish | BinarizeError]:
    """Time what the `commands` serve (`binarize.bench.serve`) in turns: a, b, a, b, ...

    Args:
        commands: name to command line.
        runs: timed runs of each.
        warmup: untimed turns of each before.

    Returns:
        By name, in the given order, what each achieved, or why it could not.

    Raises:
        UsageError: they run on different numbers of images.
    """
    lost: dict[str, BinarizeError] = {}
    with contextlib.ExitStack() as stack:
        started: dict[str, _Process] = {}
        for number, (name, command) in enumerate(commands.items()):
            progress(ProgressEvent("starting", number, len(commands), {"contender": name}))
            try:
                started[name] = stack.enter_context(_Process(name, command))
            except BinarizeError as error:
                lost[name] = error
        progress(ProgressEvent("starting", len(commands), len(commands)))
        _check_equal_work(started)
        turns = {name: _Turn(process, lost) for name, process in started.items()}
        times = latency(turns, runs=runs, warmup=warmup, progress=progress) if turns else {}
        finishes = {name: _finish(process, times[name]) for name, process in started.items() if name not in lost}
    return {name: lost[name] if name in lost else finishes[name] for name in commands}


def _check_equal_work(started: Mapping[str, _Process]) -> None:
    images = {name: process.images for name, process in started.items()}
    if len(set(images.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in images.items())
        raise UsageError(
            f"the files take different numbers of images at a time: {counts}", hint=f"--batch {max(images.values())}"
        )


def _finish(process: _Process, times: Latency) -> Finish | BinarizeError:
    try:
        return Finish(times, process.end(), process.base_rss, process.images)
    except BinarizeError as error:
        return error


@dataclass(frozen=True)
class _Turn:
    """A turn of a process; once it is lost, its turns take no time."""

    process: _Process
    lost: dict[str, BinarizeError]

    def __call__(self) -> float:
        if self.process.name in self.lost:
            return float("nan")
        try:
            return float(self.process.ask("turn")["nanoseconds"]) / 1e6
        except BinarizeError as error:
            self.lost[self.process.name] = error
            return float("nan")


class _Process:
    """A contender's process, from its start to its end.

    Raises:
        BinarizeError: what the process says, or that it died.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._complaints, text=True)
        try:
            hello = self._answer()
            self.base_rss, self.images = int(hello["base_rss"]), int(hello.get("images", 1))
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def ask(self, request: str) -> dict[str, Any]:
        """The answer to `request`."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a dead process is noticed by its missing answer
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        return self._answer()

    def end(self) -> int:
        """Close down; the peak memory in bytes."""
        return int(self.ask("end")["peak_rss"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        alarm = threading.Timer(PATIENCE, self._process.kill)
        alarm.start()
        try:
            line = self._process.stdout.readline()
            patience_ended = not alarm.is_alive()
        finally:
            alarm.cancel()
        if not line:
            raise self._death(patience_ended)
        fields: dict[str, Any] = json.loads(line)
        if "error" in fields:
            kind = getattr(errors, fields["error"], UnsupportedModelError)
            raise kind(fields["message"], layer=fields["layer"] or self.name, hint=fields["hint"])
        return fields

    def _death(self, patience_ended: bool) -> BinarizeError:
        if patience_ended:
            return UnsupportedModelError(f"gave no answer in {PATIENCE:.0f} s", layer=self.name)
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip().splitlines()
        return UnsupportedModelError(f"its process {how}" + (f": {said[-1][:200]}" if said else ""), layer=self.name)

    def _stop(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._complaints.close()
