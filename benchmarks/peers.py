"""Our binary networks and layers against other engines': `python -m benchmarks.peers [SUBJECT ...]`.

OpenVINO runs binary convolutions on x86 (`pip install openvino nncf`). Larq Compute Engine is made for ARM but runs on
x86; it wants a Python 3.11 environment of its own, whose interpreter `--larq-python` names:

    pip install tensorflow-cpu==2.15.1 larq==0.14.0 larq-compute-engine==0.16.0 onnxruntime 'numpy<2'

A row names the versions of that environment. What is not there is skipped with the reason in its row. A subject is a
network or a layer of `benchmarks.kernels`; one that has its row is skipped unless `--again` is given. Weights are
random.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import records
from benchmarks.kernels import LAYERS, Layer
from benchmarks.layer_models import binary_chain, float_layer
from benchmarks.networks import BINARY, FLOAT, MADE, make
from benchmarks.zoo import NETWORKS
from binarize.bench.machine import machine, pinned
from binarize.bench.race import Finish, onnx_command, race
from binarize.bench.timing import MINIMUM_RUNS
from binarize.errors import BinarizeError, EnvironmentProblem
from binarize.exporting.emit import write_onnx

KIND = "peers"
LINKS = 5
"""Of the longer chain; what a layer costs inside a network is (chain of 5 - layer) / 4: both directions' mean."""
LAYER_RUNS = 4
"""Layers take microseconds: this many times the runs of a network."""
RIVALS = {"resnet18": "bireal18", "resnet50": "binary_resnet50"}
"""Our network, and the peers' of the same shape: without Elastic Links, with the float layers its authors keep."""
DENSE = {layer.name: layer for layer in LAYERS if layer.group == 1}

Commands = dict[str, Sequence[str] | BinarizeError]


def main() -> None:
    subjects = [*RIVALS, *DENSE]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(subjects)}; default: all")
    parser.add_argument("--runs", type=int, default=30, help=f"of a network; a layer has {LAYER_RUNS} times as many")
    parser.add_argument("--larq-python", help="the Python of an environment with larq-compute-engine")
    parser.add_argument("--again", action="store_true", help="time again what has its row already")
    arguments = parser.parse_args()
    unknown = set(arguments.subjects) - set(subjects)
    if unknown:
        parser.error(f"unknown subject {', '.join(sorted(unknown))}")
    wanted = arguments.subjects or subjects
    if min(arguments.runs * (1 if subject in RIVALS else LAYER_RUNS) for subject in wanted) < MINIMUM_RUNS:
        parser.error(f"--runs {arguments.runs} gives fewer than {MINIMUM_RUNS} of each contender")
    for subject in wanted:
        if arguments.again or records.find(KIND, subject, 1, machine()["cpu"]) is None:
            commands = (network if subject in RIVALS else layer)(subject, arguments.larq_python)
            runs = arguments.runs if subject in RIVALS else LAYER_RUNS * arguments.runs
            found, cores = run(commands, runs)
            values = {"runs": runs, "pinned": cores, "contenders": records.finishes(found)}
            records.save(KIND, subject, 1, values, larq_versions(arguments.larq_python))
            show(subject, found)


def network(name: str, larq_python: str | None) -> Commands:
    """Our network's versions and the peers' rivals."""
    files = make(name, NETWORKS[name])
    rival = RIVALS[name]
    commands: Commands = {key: onnx_command(path, 1) for key, path in files.items() if path.suffix == ".onnx"}
    commands = {BINARY: commands.pop(BINARY), FLOAT: commands.pop(FLOAT), **commands}
    commands["OpenVINO binary, float32 rest"] = openvino(rival, "f32")
    commands["OpenVINO binary, default rest"] = openvino(rival, "default")
    if rival == "bireal18":
        commands["Larq binary"] = larq(rival, larq_python)
    return commands


def layer(name: str, larq_python: str | None) -> Commands:
    """One layer, floats in and out, and chains of it that stay packed inside."""
    shape = DENSE[name]
    folder = MADE / "layers"
    folder.mkdir(parents=True, exist_ok=True)
    single = openvino_name(shape, 1)
    commands: Commands = {
        BINARY: _file(folder, shape, 1),
        FLOAT: _float(folder, shape),
        "OpenVINO binary": openvino(single, "f32"),
        "Larq binary": larq(single, larq_python),
    }
    if shape.stride == 1:
        commands[f"{BINARY} x{LINKS}"] = _file(folder, shape, LINKS)
        commands[f"OpenVINO binary x{LINKS}"] = openvino(openvino_name(shape, LINKS), "f32")
    return commands


def run(commands: Commands, runs: int) -> tuple[dict[str, Finish | BinarizeError], int]:
    """Time what can be timed; what cannot keeps its reason, in its place. Also on how many cores that was."""
    ready = {name: command for name, command in commands.items() if not isinstance(command, BinarizeError)}
    with pinned(1) as cores:
        timed = race(ready, runs=runs, warmup=3)
    found = {name: command if isinstance(command, BinarizeError) else timed[name] for name, command in commands.items()}
    return found, len(cores)


def show(subject: str, found: Mapping[str, Finish | BinarizeError]) -> None:
    for name, result in found.items():
        shown = result.message if isinstance(result, BinarizeError) else f"{result.latency.median:9.4f} ms"
        print(f"{subject:24} {name:32} {shown}", flush=True)


def openvino(model: str, precision: str) -> Sequence[str] | BinarizeError:
    """What runs an OpenVINO net, or why nothing does."""
    if importlib.util.find_spec("openvino") is None:
        return EnvironmentProblem("skipped: openvino is not installed", hint="pip install openvino nncf")
    return [sys.executable, "-m", "benchmarks.openvino_worker", model, "--precision", precision]


def openvino_name(shape: Layer, links: int) -> str:
    """The layer as the workers take it."""
    return f"layer:{shape.kernel}:{shape.channels}:{shape.out_channels}:{shape.size}:{shape.stride}:{links}"


def larq(model: str, python: str | None) -> Sequence[str] | BinarizeError:
    """What runs a Larq net, or why nothing does."""
    if python is None:
        return EnvironmentProblem("skipped: no --larq-python was given")
    if not larq_versions(python):
        return EnvironmentProblem("skipped: larq_compute_engine cannot be imported there")
    return [python, "-m", "benchmarks.larq_worker", model]


@functools.cache
def larq_versions(python: str | None) -> dict[str, str]:
    """What the environment of that interpreter has; nothing if Larq does not run there."""
    if python is None:
        return {}
    worker = [python, "-m", "benchmarks.larq_worker", "versions"]
    asked = subprocess.run(worker, capture_output=True, text=True, check=False)
    if asked.returncode:
        return {}
    versions: dict[str, str] = json.loads(asked.stdout.splitlines()[-1])
    return versions


def _file(folder: Path, shape: Layer, links: int) -> list[str]:
    path = folder / f"{openvino_name(shape, links).replace(':', '_')}.onnx"
    write_onnx(binary_chain(shape, links), path)
    return onnx_command(path, 1)


def _float(folder: Path, shape: Layer) -> list[str]:
    path = folder / f"{openvino_name(shape, 1).replace(':', '_')}_float.onnx"
    write_onnx(float_layer(shape), path)
    return onnx_command(path, 1)


if __name__ == "__main__":
    main()
