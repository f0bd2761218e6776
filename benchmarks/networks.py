"""Whole networks, binary against float32 and int8: `python -m benchmarks.networks [NETWORK ...]`.

Converts each network (random weights: speed does not depend on them, and nothing here says anything about accuracy),
times all versions of it in turns, and puts the figures into `results/networks.json`. A network that has its row is
skipped unless `--again` is given, so an interrupted run goes on with the same command. OpenVINO takes part where it is
installed (`pip install openvino nncf`). `python -m benchmarks.render` makes docs/performance.md of the results.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch

import binarize
from benchmarks import records
from benchmarks.convs import times_by_kind
from benchmarks.zoo import NETWORKS, Network, as_trained
from binarize.bench.compare import file_size
from binarize.bench.float_onnx import float_onnx
from binarize.bench.int8 import int8_onnx
from binarize.bench.machine import machine, pinned
from binarize.bench.profile import profile
from binarize.bench.race import onnx_command, race
from binarize.config import Config
from binarize.errors import BinarizeError
from binarize.exporting.emit import DOMAIN, write_onnx
from binarize.exporting.quantize import batches_of, quantize_ends

SHAPE = (3, 224, 224)
KIND = "networks"
BINARY = "binary"
FLOAT = "ORT float32"
MADE = records.ROOT / "build" / "benchmarks"


def images(count: int) -> np.ndarray:
    """Random inputs [count, 3, 224, 224]."""
    return np.random.default_rng(0).standard_normal((count, *SHAPE)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}; default: all")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=records.timed_runs, default=30)
    parser.add_argument("--make-only", action="store_true", help="convert, but leave timing for a quiet moment")
    parser.add_argument("--again", action="store_true", help="time again what has its row already")
    arguments = parser.parse_args()
    unknown = set(arguments.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"unknown network {', '.join(sorted(unknown))}")
    for name in arguments.networks or NETWORKS:
        files = make(name, NETWORKS[name])
        for threads in [] if arguments.make_only else arguments.threads:
            if arguments.again or records.find(KIND, name, threads, machine()["cpu"]) is None:
                measure(name, files, threads, arguments.runs)


def make(name: str, network: Network) -> dict[str, Path]:
    """Every version of a network as a file in `build/benchmarks/<name>`, by the contender's name.

    Binary ones that other sources made are made again: a row bears the commit that it was measured at.
    """
    folder = MADE / name
    folder.mkdir(parents=True, exist_ok=True)
    half = Config().updated({"export": {"stream": "float16"}})
    makers: dict[str, tuple[str, Callable[[Path], object]]] = {
        BINARY: ("binary.onnx", lambda path: _binary(network, path, Config())),
        "binary, int8 ends": ("int8_ends.onnx", lambda path: _int8_ends(folder / "binary.onnx", path)),
        "binary, float16": ("float16.onnx", lambda path: _binary(network, path, half)),
        "binary, float16, int8 ends": (
            "float16_int8_ends.onnx",
            lambda path: _int8_ends(folder / "float16.onnx", path),
        ),
        FLOAT: ("float.onnx", lambda path: float_onnx(network.model(), path, (torch.from_numpy(images(2)),))),
        "ORT int8": ("int8.onnx", lambda path: int8_onnx(folder / "float.onnx", path)),
    }
    if network.linear:
        linear = {"surgery": {"linear": "all"}}
        makers["binary, linear too"] = ("linear.onnx", lambda path: _binary(network, path, Config().updated(linear)))
        makers["binary, float16, linear too"] = (
            "linear_float16.onnx",
            lambda path: _binary(network, path, half.updated(linear)),
        )
        makers["binary, linear too, int8 ends"] = (
            "linear_int8_ends.onnx",
            lambda path: _int8_ends(folder / "linear.onnx", path),
        )
        makers["binary, float16, linear too, int8 ends"] = (
            "linear_float16_int8_ends.onnx",
            lambda path: _int8_ends(folder / "linear_float16.onnx", path),
        )
    if importlib.util.find_spec("nncf") is not None:
        makers["OpenVINO int8"] = ("nncf.xml", lambda path: _nncf(folder / "float.onnx", path))
    made: dict[str, Path] = {}
    for contender, (file, maker) in makers.items():
        made[contender] = folder / file
        if not (records.is_current if contender.startswith(BINARY) else Path.exists)(made[contender]):
            print(f"{name}: making {contender}", flush=True)
            maker(made[contender])
            records.mark_current(made[contender])
    return made


def measure(name: str, files: dict[str, Path], threads: int, runs: int) -> None:
    """Time a network's versions in turns and save its row."""
    commands = {contender: _command(contender, path, threads) for contender, path in files.items()}
    if importlib.util.find_spec("openvino") is not None:
        commands["OpenVINO float32"] = _openvino(files[FLOAT], threads, "f32")
        commands["OpenVINO default"] = _openvino(files[FLOAT], threads, "default")
    with pinned(threads) as cores:
        found = race(commands, runs=runs, warmup=2)
    ours = {contender: path for contender, path in files.items() if contender.startswith(BINARY)}
    profiles = profile(ours, threads=threads)
    values = {
        "runs": runs,
        "pinned": len(cores),
        "contenders": records.finishes(found),
        "bytes": {contender: file_size(path) for contender, path in files.items() if path.suffix == ".onnx"},
        "profiles": {contender: _operators(profiles[contender].by_operator()) for contender in ours},
        "convs": {contender: _rounded(times_by_kind(profiles[contender], path)) for contender, path in ours.items()},
    }
    records.save(KIND, name, threads, values)
    for contender, result in found.items():
        shown = result.message if isinstance(result, BinarizeError) else f"{result.latency.median:8.3f} ms"
        print(f"{name}, {threads} thread(s), {contender:30} {shown}", flush=True)


def _operators(rows: list[dict[str, object]]) -> dict[str, float]:
    """Milliseconds by operator; ours carry their domain."""
    return {_operator(row): round(float(str(row["milliseconds"])), 4) for row in rows}


def _rounded(kinds: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {kind: {name: round(value, 4) for name, value in sums.items()} for kind, sums in kinds.items()}


def _operator(row: dict[str, object]) -> str:
    ours = str(row["kernel"]).startswith(DOMAIN)
    return f"{DOMAIN}.{row['op']}" if ours else str(row["op"])


def _command(contender: str, path: Path, threads: int) -> list[str]:
    return _openvino(path, threads, "f32") if contender.startswith("OpenVINO") else onnx_command(path, threads)


def _openvino(path: Path, threads: int, precision: str) -> list[str]:
    options = ["--threads", str(threads), "--precision", precision]
    return [sys.executable, "-m", "benchmarks.openvino_worker", str(path), *options]


def _binary(network: Network, path: Path, config: Config) -> None:
    """Without the proof of equality, which tests run and which takes most of a large net's export."""
    module = as_trained(binarize.apply(network.model(), torch.from_numpy(images(2)), config=config))
    binarize.export(module.eval(), path, check=False)


def _int8_ends(binary: Path, path: Path) -> None:
    write_onnx(quantize_ends(onnx.load(binary), batches_of({"input": images(8)})), path)


def _nncf(float_file: Path, path: Path) -> None:
    """Post-training int8 by OpenVINO's own tool."""
    import nncf
    import openvino

    model = openvino.Core().read_model(str(float_file))
    model.reshape([1, *SHAPE])
    quantized = nncf.quantize(model, nncf.Dataset([image[None] for image in images(8)]), subset_size=8)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        openvino.save_model(quantized, str(made), compress_to_fp16=False)
        for part in (made.with_suffix(".bin"), made):  # the file that is looked for comes last
            part.replace(path.with_name(part.name))


if __name__ == "__main__":
    main()
