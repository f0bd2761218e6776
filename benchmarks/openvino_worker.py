"""A contender that runs in OpenVINO: `python -m benchmarks.openvino_worker FILE`, driven by `binarize.bench.race`.

FILE is an ONNX or OpenVINO model, or the name of one that `benchmarks.openvino_nets` builds.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from binarize.bench.serve import Call, serve


def compiled_call(model: str, threads: int, precision: str) -> Call:
    """A run of `model` (batch 1) on `threads` threads; `precision` is `f32`, or `default` for what OpenVINO prefers."""
    import openvino

    core = openvino.Core()
    network = core.read_model(model) if Path(model).is_file() else _built(model)
    shape = network.input(0).get_partial_shape()
    if shape.is_dynamic:
        shape[0] = 1
        network.reshape(shape)
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # the process is pinned already
    }
    if precision == "f32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    image = np.random.default_rng(0).standard_normal(tuple(network.input(0).shape)).astype(np.float32)
    return partial(request.infer, {0: image}, share_inputs=True, share_outputs=True)


def _built(name: str) -> Any:
    from benchmarks.openvino_nets import build

    return build(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("f32", "default"), default="f32")
    arguments = parser.parse_args()
    serve(lambda: compiled_call(arguments.model, arguments.threads, arguments.precision))


if __name__ == "__main__":
    main()
