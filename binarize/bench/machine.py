"""The machine under a measurement: its CPU, its versions, and a process that stays on its cores."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy
import onnxruntime

from binarize.machine import versions
from binarize.runtime import active_isa


def machine() -> dict[str, str]:
    """CPU name, instruction set of our kernels, versions."""
    return {
        "cpu": cpu_name(),
        "caches": caches(),
        "cores": str(os.cpu_count()),
        "isa": active_isa(),
        "binarize": versions()["binarize-nn"],
        "onnxruntime": onnxruntime.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cpu_name() -> str:
    """The CPU's own name where Linux tells it, with family and model where those exist; else what Python knows."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    name = next((facts[key] for key in ("model name", "Model", "cpu model") if facts.get(key)), "")
    if "cpu family" in facts and "model" in facts:  # virtual machines call many generations by one name
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return name or platform.processor() or platform.machine()


def caches() -> str:
    """The first core's caches where Linux tells them: `L1d 32K, L2 1024K, L3 32768K`."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        with contextlib.suppress(OSError):
            level, kind, size = ((index / item).read_text().strip() for item in ("level", "type", "size"))
            if kind != "Instruction":
                found[f"L{level}{'d' if kind == 'Data' else ''}"] = size
    return ", ".join(f"{name} {size}" for name, size in found.items())


@contextlib.contextmanager
def pinned(cores: int) -> Iterator[tuple[int, ...]]:
    """Keep this process on `cores` of the cores it may use; yields them, or () where that is impossible.

    Hardware threads of one core come last: two of them are no two cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    allowed = os.sched_getaffinity(0)
    chosen = tuple(one_per_core_first(sorted(allowed))[:cores])
    if len(chosen) < cores:
        yield ()
        return
    try:
        os.sched_setaffinity(0, chosen)
    except OSError:
        yield ()
        return
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, allowed)


def one_per_core_first(threads: list[int], system: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """Hardware threads of different cores, then the rest; as given where the system does not tell."""
    seen: dict[str, int] = {}
    rank: dict[int, int] = {}
    for thread in threads:
        siblings = str(thread)
        with contextlib.suppress(OSError):
            siblings = (system / f"cpu{thread}/topology/thread_siblings_list").read_text().strip()
        rank[thread] = seen.get(siblings, 0)
        seen[siblings] = rank[thread] + 1
    return sorted(threads, key=lambda thread: (rank[thread], thread))
