"""Committed measurements: one JSON file per kind, a row per subject, number of threads and kind of CPU."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.arguments import at_least
from binarize.bench.machine import machine
from binarize.bench.race import Finish
from binarize.bench.timing import MINIMUM_RUNS
from binarize.errors import BinarizeError
from binarize.files import write_text

timed_runs = at_least(MINIMUM_RUNS)
"""So many runs as a race takes, refused before what takes an hour to make."""

FOLDER = Path(__file__).with_name("results")
ROOT = FOLDER.parents[1]
Row = dict[str, Any]


def read(kind: str) -> list[Row]:
    """The rows of `results/<kind>.json`; none if there is no such file yet."""
    path = FOLDER / f"{kind}.json"
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return rows


MAIN_CPU = "AMD EPYC (family 26, model 2)"
"""Zen 5, the class that the targets name: what tables of one CPU are about, and the first of those of several."""


def cpus(kind: str) -> list[str]:
    """The CPUs that have rows, the main one first."""
    return sorted({row["machine"]["cpu"] for row in read(kind)}, key=lambda cpu: (cpu != MAIN_CPU, cpu))


def main_cpu(kind: str) -> str:
    """`MAIN_CPU`, or another that has rows, or this machine's."""
    return next(iter(cpus(kind)), machine()["cpu"])


def find(kind: str, subject: str, threads: int, cpu: str) -> Row | None:
    """The row of one subject on one kind of CPU, if it was measured."""
    return next((row for row in read(kind) if _key(row) == (subject, threads, cpu)), None)


def _key(row: Row) -> tuple[str, int, str]:
    return row["subject"], row["threads"], row["machine"]["cpu"]


def save(
    kind: str, subject: str, threads: int, values: Mapping[str, Any], versions: Mapping[str, str] | None = None
) -> None:
    """Put one subject's row in place of its old one on this kind of CPU, with the machine and the source's version.

    Every row says on how many cores its contenders were kept (`pinned`, 0 if on none in particular) and how the system
    schedules them (`scheduling`). Rows of before it did lack the second, and some the first.

    Args:
        versions: of what ran in other environments; they join the machine's.
    """
    row = {
        "subject": subject,
        "threads": threads,
        "source": revision(),
        "machine": described_machine() | dict(versions or {}),
        "pinned": own_cores(),
        "scheduling": scheduling(),
        **values,
    }
    rows = sorted([*(old for old in read(kind) if _key(old) != _key(row)), row], key=_key)
    write_text(FOLDER / f"{kind}.json", json.dumps(rows, indent=1) + "\n")


def binary_isa(isa: str) -> str:
    """The instruction set whose binary convs a machine of that one runs: AMX and AVX-VNNI have none of their own."""
    return {"amx": "avx512", "avxvnni": "avx2"}.get(isa, isa)


def own_cores() -> int:
    """How many cores this process is kept on; 0 if it may use all, or where the system does not tell."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return 0 if allowed == os.cpu_count() else allowed


def scheduling() -> str:
    """How the system schedules this process and those that it starts: `normal`, or a policy with its priority.

    `SCHED_RR 1` is what `chrt --rr 1` gives. Where the system does not tell: `unknown`.
    """
    if not hasattr(os, "sched_getscheduler"):
        return "unknown"
    policy = os.sched_getscheduler(0)
    if policy == os.SCHED_OTHER or policy & os.SCHED_RESET_ON_FORK:  # contenders do not inherit the latter
        return "normal"
    names = {os.SCHED_RR: "SCHED_RR", os.SCHED_FIFO: "SCHED_FIFO", os.SCHED_BATCH: "SCHED_BATCH"}
    priority = os.sched_getparam(0).sched_priority
    return names.get(policy, f"policy {policy}") + (f" {priority}" if priority else "")


def finishes(found: Mapping[str, Finish | BinarizeError]) -> dict[str, Any]:
    """What `race` returned as plain data, rounded to what was measured; a failure keeps its reason."""
    return {name: _plain(result) for name, result in found.items()}


def _plain(result: Finish | BinarizeError) -> dict[str, Any]:
    if isinstance(result, BinarizeError):
        return {"failed": result.message}
    # Beside a first contender that failed there is no ratio, and JSON has no word for that.
    times = {n: round(v, 4) if math.isfinite(v) else None for n, v in result.latency.to_dict().items()}
    return {**times, "peak_rss": result.peak_rss, "base_rss": result.base_rss}


def described_machine() -> dict[str, str]:
    """`machine()` and the peers' versions."""
    peers = {name: version for name in ("openvino", "nncf", "larq-compute-engine") if (version := _version(name))}
    return machine() | peers


def revision() -> str:
    """The commit that was measured, with a `+` if the working tree differs from it in more than results."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        tables = [f"benchmarks/table1/results.{kind}" for kind in ("csv", "md", "svg")]
        results = ("benchmarks/results", *tables, "docs")
        source = [f":(exclude){path}" for path in results]
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", *source], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+" if changed else "")


@functools.cache
def compiler() -> str:
    """A digest of the sources that make graphs; other sources may make another file of the same network."""
    sources = sorted(path for folder in ("binarize", "passes") for path in (ROOT / folder).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def is_current(made: Path) -> bool:
    """Whether the sources of now made that file."""
    note = _note(made)
    return made.exists() and note.exists() and note.read_text(encoding="utf-8") == compiler()


def mark_current(made: Path) -> None:
    """Remember beside a file which sources made it."""
    write_text(_note(made), compiler())


def _note(made: Path) -> Path:
    return made.with_name(f"{made.name}.made-by")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
