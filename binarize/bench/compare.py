"""ONNX files against each other: the record of one measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from binarize.bench.machine import machine, pinned
from binarize.bench.race import Finish, onnx_command, race
from binarize.bench.timing import Latency
from binarize.errors import BinarizeError, UsageError
from binarize.progress import Listener, silent


@dataclass(frozen=True)
class Contender:
    """One file's figures.

    Attributes:
        name: as given.
        path: the file.
        size: of the file and of the external data it names by its own name, in bytes.
        latency: of one run.
        peak_rss: largest resident memory of a process that only loads and runs the file, in bytes, interpreter and
            libraries included; 0 where the system does not tell.
        base_rss: the same before the file was opened.
    """

    name: str
    path: Path
    size: int
    latency: Latency
    peak_rss: int = 0
    base_rss: int = 0


@dataclass(frozen=True)
class Benchmark:
    """A measurement.

    Attributes:
        contenders: the first one is what the others are compared with.
        machine: CPU, kernels' instruction set, versions.
        threads: of ONNX Runtime, for each contender.
        cores: the process was kept on these; () if it was not.
        batch: images per run.
        runs: timed runs of each contender.
    """

    contenders: tuple[Contender, ...]
    machine: dict[str, str]
    threads: int
    cores: tuple[int, ...]
    batch: int
    runs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data; latencies in milliseconds, sizes in bytes."""
        return {
            "machine": self.machine,
            "threads": self.threads,
            "cores": list(self.cores),
            "batch": self.batch,
            "runs": self.runs,
            "contenders": [
                {
                    "name": c.name,
                    "path": str(c.path),
                    "bytes": c.size,
                    "milliseconds": c.latency.to_dict(),
                    "peak_rss_bytes": c.peak_rss,
                    "base_rss_bytes": c.base_rss,
                }
                for c in self.contenders
            ],
        }

    def columns(self) -> tuple[str, ...]:
        """Headings of `rows`."""
        return ("model", "median ms", "min ms", "p90 ms", "images/s", "file", "peak memory")

    def rows(self) -> list[tuple[str, ...]]:
        """A row for each contender."""
        return [_row(contender, self.batch) for contender in self.contenders]

    def verdicts(self) -> list[str]:
        """A sentence per comparison; being slower is said as plainly as being faster. One more if they share cores."""
        first, *others = self.contenders
        sentences = [_verdict(first, other) for other in others]
        cores = int(self.machine.get("cores", self.threads))
        if self.threads > cores:
            sentences.append(f"{self.threads} threads shared {cores} cores and waited for one another.")
        return sentences


def benchmark(
    files: Mapping[str, str | Path],
    *,
    threads: int = 1,
    runs: int = 50,
    warmup: int = 5,
    batch: int | None = None,
    progress: Listener = silent,
) -> Benchmark:
    """Time ONNX files on random inputs, in turns, each in a process of its own.

    Args:
        files: name to path; binary and ordinary ones.
        threads: for each of them.
        runs: timed runs of each, at least 20.
        batch: images per run; by default what the files take at a time if they say so, else 1.

    Raises:
        UsageError: there is no such file, or it is a folder, or the files do not take as many images.
        UnsupportedModelError: a file cannot be run.
    """
    for path in files.values():
        if Path(path).is_dir():
            raise UsageError("this is a folder, and one file is timed", layer=str(path), hint="give a file in it")
        if not Path(path).is_file():
            raise UsageError("there is no such file", layer=str(path))
    with pinned(threads) as cores:
        commands = {name: onnx_command(path, threads, batch) for name, path in files.items()}
        finishes = race(commands, runs=runs, warmup=warmup, progress=progress)
    done = {name: _finished(finishes[name]) for name in files}
    contenders = tuple(
        Contender(name, Path(path), file_size(path), done[name].latency, done[name].peak_rss, done[name].base_rss)
        for name, path in files.items()
    )
    images = next(iter(done.values())).images  # of all of them
    return Benchmark(contenders, machine(), threads, cores, images, runs)


def file_size(path: str | Path) -> int:
    """Bytes of the file at `path` and of `<path>.data`, where exporters put large weights."""
    data = Path(f"{path}.data")
    return Path(path).stat().st_size + (data.stat().st_size if data.is_file() else 0)


def _finished(finish: Finish | BinarizeError) -> Finish:
    if isinstance(finish, BinarizeError):
        raise finish
    return finish


def _row(contender: Contender, batch: int) -> tuple[str, ...]:
    times = contender.latency
    figures = (f"{value:.3f}" for value in (times.median, times.minimum, times.p90))
    memory = f"{contender.peak_rss / 1e6:.0f} MB" if contender.peak_rss else "-"
    return (contender.name, *figures, f"{1000 * batch / times.median:.0f}", f"{contender.size / 1e6:.3f} MB", memory)


def _verdict(first: Contender, other: Contender) -> str:
    # The ratios say how fast `other` is beside `first`; the sentence is about `first`.
    times = other.latency
    speed, low, high = 1 / times.ratio, 1 / times.ratio_high, 1 / times.ratio_low
    if low <= 1 <= high:
        claim = f"as fast as {other.name} within this run's noise"
    elif speed > 1:
        claim = f"{speed:.2f}x as fast as {other.name}"
    else:
        claim = f"SLOWER than {other.name}, {speed:.2f}x as fast"
    size = other.size / max(first.size, 1)
    smaller = f"{size:.1f}x smaller" if size >= 1 else f"{1 / size:.1f}x larger"
    return f"{first.name} is {claim} (95 % interval {low:.2f}x to {high:.2f}x), and {smaller}."
