"""Where a run's time goes, from ONNX Runtime's own profiler: by node, by operator, and which kernels did it."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from binarize.bench.machine import pinned
from binarize.bench.sessions import batch_of, open_session, random_feeds
from binarize.bench.timing import Spread
from binarize.progress import Listener, ProgressEvent, silent
from binarize.runtime import active_isa
from binarize.runtime.library import DOMAIN, kernels_of

_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class NodeTime:
    """One node that ONNX Runtime executed.

    Attributes:
        name: as ONNX Runtime calls it after its optimizations.
        op: its operator.
        times: milliseconds of each run.
        kernel: whose it is: `ai.binarize avx512`, or ONNX Runtime's provider.
        shape: of its first output that is made.
    """

    name: str
    op: str
    times: tuple[float, ...]
    kernel: str
    shape: tuple[int, ...]

    @property
    def milliseconds(self) -> float:
        """Median over the runs."""
        return statistics.median(self.times)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "op": self.op,
            "kernel": self.kernel,
            "shape": list(self.shape),
            "milliseconds": Spread.of(self.times).to_dict(),
        }


@dataclass(frozen=True)
class Profile:
    """All nodes of one file, in order of execution. The profiler itself costs a few microseconds per node."""

    nodes: tuple[NodeTime, ...]

    @property
    def milliseconds(self) -> float:
        """The nodes' medians together."""
        return sum(node.milliseconds for node in self.nodes)

    def by_operator(self) -> list[dict[str, Any]]:
        """Operators with their number of nodes, time and share, the slowest first."""
        groups: dict[tuple[str, str], list[float]] = {}
        for node in self.nodes:
            groups.setdefault((node.op, node.kernel), []).append(node.milliseconds)
        total = max(self.milliseconds, 1e-9)
        rows = [
            {"op": op, "kernel": kernel, "nodes": len(times), "milliseconds": sum(times), "share": sum(times) / total}
            for (op, kernel), times in groups.items()
        ]
        return sorted(rows, key=lambda row: -float(str(row["milliseconds"])))

    def to_dict(self) -> dict[str, Any]:
        return {
            "milliseconds": self.milliseconds,
            "operators": self.by_operator(),
            "nodes": [node.to_dict() for node in self.nodes],
        }


def profile(
    files: Mapping[str, str | Path],
    *,
    threads: int = 1,
    runs: int = 20,
    batch: int | None = None,
    progress: Listener = silent,
) -> dict[str, Profile]:
    """Profile ONNX files on random inputs, in turns; of each turn's two runs the second counts. For `batch` see
    `benchmark`.

    Needs the package onnx, because the profiler does not tell our operators from standard ones of the same name.
    """
    with tempfile.TemporaryDirectory() as folder, pinned(threads):
        sessions = {
            name: open_session(path, threads, profile=Path(folder) / str(number))
            for number, (name, path) in enumerate(files.items())
        }
        feeds = {name: random_feeds(session, batch_of(session, batch)) for name, session in sessions.items()}
        for turn in range(runs):
            for name, session in sessions.items():
                session.run(None, feeds[name])
                session.run(None, feeds[name])
            progress(ProgressEvent("profiling", turn + 1, runs))
        return {name: _read(Path(session.end_profiling()), files[name]) for name, session in sessions.items()}


def _read(path: Path, file: str | Path) -> Profile:
    """Every second run of the profiler's record at `path` about the ONNX `file`."""
    times: dict[tuple[str, str, str, str, tuple[int, ...]], list[float]] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            facts = event["args"]
            name = event["name"].removesuffix(_SUFFIX)
            shape = next((tuple(size) for output in facts["output_type_shape"] for size in output.values()), ())
            key = (facts["node_index"], name, facts["op_name"], facts["provider"], shape)
            times.setdefault(key, []).append(event["dur"] / 1e3)
    ours, isa = _own_nodes(file), active_isa()
    return Profile(
        tuple(
            NodeTime(name, op, tuple(own[1::2]), f"{DOMAIN} {kernels_of(op, isa)}" if name in ours else provider, shape)
            for (_, name, op, provider, shape), own in times.items()
        )
    )


def _own_nodes(file: str | Path) -> set[str]:
    """Names of the nodes of our domain; ONNX Runtime leaves them as they are."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    return {node.name for node in graph.node if node.domain == DOMAIN}
