"""Small ONNX models of one operator, random cases for them, and how to run both."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy_reference as reference
import onnx
import onnxruntime
from numpy_reference import Conv
from onnx import TensorProto, helper, numpy_helper

from binarize.runtime import InferenceSession
from binarize.runtime.library import supported_isas

ZERO_MAP = np.zeros((1, 1, 1, 1), dtype=np.float32)
ONE_MAP = np.ones((1, 1, 1, 1), dtype=np.float32)
INPUTS = [
    *("bits", "weight", "scale", "bias", "link", "gamma", "residual", "slope", "shift", "next_threshold"),
    *("gate", "factor"),
]
THREADS = (1, 2, 3, 5, 8)
"""Numbers of threads that must give the same bits: even and odd ones, and more than most maps here have parts for."""
DATA_INPUTS = ("bits", "link", "residual", "gate", "factor")
NEUTRAL = (ZERO_MAP, ONE_MAP)


def is_neutral(value: np.ndarray) -> bool:
    """Whether it is one of the constants that stand for a missing input."""
    return any(value is one for one in NEUTRAL)


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Forces an instruction set for the sessions created inside."""
    before = os.environ.get("BINARIZE_ISA")
    os.environ["BINARIZE_ISA"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["BINARIZE_ISA"]
        else:
            os.environ["BINARIZE_ISA"] = before


@functools.cache
def available_isas() -> tuple[str, ...]:
    """The instruction sets this build and machine can run, the best one last."""
    return supported_isas()[::-1]


@dataclass(frozen=True)
class Case:
    """One call of BinaryConv2d: attributes, all inputs by name, and which outputs are wanted."""

    conv: Conv
    values: dict[str, np.ndarray]
    outputs: tuple[str, ...] = ("y", "next_bits")
    attributes: dict[str, Any] = field(default_factory=dict)
    stream: type = np.float32

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """`(y, next_bits)` of the NumPy reference."""
        v = self.values
        return reference.binary_conv2d(
            v["bits"],
            v["weight"],
            self.conv,
            scale=v["scale"],
            bias=v["bias"],
            link=None if v["link"] is ZERO_MAP else v["link"],
            gamma=v["gamma"],
            residual=None if v["residual"] is ZERO_MAP else v["residual"],
            slope=v["slope"] if np.any(v["slope"] != 1) else None,
            shift=v["shift"] if np.any(v["shift"] != 0) else None,
            next_threshold=v["next_threshold"],
            gate=None if v["gate"] is ONE_MAP else v["gate"],
            factor=None if v["factor"] is ONE_MAP else v["factor"],
            stream=self.stream,
        )


def make_case(
    *,
    channels: int,
    out_channels: int,
    kernel: tuple[int, int] = (3, 3),
    size: tuple[int, int] = (6, 7),
    batch: int = 1,
    group: int = 1,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    dilations: tuple[int, int] = (1, 1),
    link: bool = False,
    residual: bool = False,
    slope: bool = False,
    shift: bool = False,
    exact: bool = False,
    scalar_parameters: bool = False,
    planes: int = 1,
    bases: int = 1,
    ternary: int = 0,
    first_plane: int = 0,
    planes_behind: int = 0,
    next_planes: int = 1,
    gate: bool = False,
    factor: str = "",
    outputs: tuple[str, ...] = ("y", "next_bits"),
    stream: type = np.float32,
    seed: int = 0,
) -> Case:
    """A random case.

    Args:
        exact: make y the (sum of) accumulators itself.
        planes_behind: of the map's bits, behind those that the conv reads.
        factor: `image` for one per pixel of each image, `all` for the same in all, empty for none.
        stream: the type of link, residual and y.
    """
    rng = np.random.default_rng(seed)
    conv = Conv(channels, group, strides, pads, dilations, planes, bases, ternary, first_plane)
    count = 1 if scalar_parameters else out_channels

    def parameter(center: float) -> np.ndarray:
        return (center + rng.normal(size=count)).astype(np.float32)

    def fixed(value: float) -> np.ndarray:
        return np.full(1, value, dtype=np.float32)

    height, width = conv.extent(size[0], kernel[0], 0), conv.extent(size[1], kernel[1], 1)
    signs = rng.integers(0, 2, (bases, out_channels, channels // group, *kernel)) * 2 - 1
    in_map = first_plane + conv.bit_planes + planes_behind
    bits = [reference.pack_bits(rng.integers(0, 2, (batch, *size, channels)) > 0) for _ in range(in_map)]
    by_plane = rng.normal(size=(next_planes, out_channels)).astype(np.float32)
    by_term = rng.normal(size=(conv.terms, out_channels)).astype(np.float32)
    images = batch if factor == "image" else 1
    pixels = rng.normal(size=(images, height, width, 1)).astype(np.float32) if factor else ONE_MAP
    values = {
        "bits": np.concatenate(bits, axis=-1),
        "weight": np.concatenate([reference.pack_weight(base, group) for base in signs]),
        "scale": fixed(1) if exact else by_term if conv.terms > 1 and not scalar_parameters else parameter(0),
        "bias": fixed(0) if exact else parameter(0),
        "link": rng.normal(size=(batch, *size, channels)).astype(stream) if link else ZERO_MAP,
        "gamma": parameter(1),
        "residual": rng.normal(size=(batch, height, width, out_channels)).astype(stream) if residual else ZERO_MAP,
        "slope": parameter(0) if slope else fixed(1),
        "shift": parameter(0) if shift else fixed(0),
        "next_threshold": parameter(0) if next_planes == 1 else by_plane,
        "gate": rng.normal(size=(batch, 1, 1, out_channels)).astype(np.float32) if gate else ONE_MAP,
        "factor": pixels,
    }
    return Case(conv, values, outputs, stream=stream)


def tensor_type(array: np.ndarray) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def model_bytes(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray],
    outputs: dict[str, int],
    functions: Sequence[onnx.FunctionProto] = (),
) -> bytes:
    """A serialized model; input extents are symbolic, so that one model serves any shape."""
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info(name, tensor_type(a), [f"{name}_{axis}" for axis in range(a.ndim)])
            for name, a in inputs.items()
        ],
        [helper.make_tensor_value_info(name, kind, [None] * 4) for name, kind in outputs.items()],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.binarize", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=9)
    return bytes(model.SerializeToString())


def conv_node(case: Case, **overrides: Any) -> onnx.NodeProto:
    """The node of a case; it lists both outputs, and one that is not wanted has the empty name."""
    conv = case.conv
    attributes: dict[str, Any] = {
        "channels": conv.channels,
        "group": conv.group,
        "strides": list(conv.strides),
        "pads": list(conv.pads),
        "dilations": list(conv.dilations),
        "planes": conv.planes,
        "bases": conv.bases,
        "ternary": conv.ternary,
        "first_plane": conv.first_plane,
    }
    attributes.update(overrides)
    attributes = {name: value for name, value in attributes.items() if value is not None}
    outputs = [name if name in case.outputs else "" for name in ("y", "next_bits")]
    return helper.make_node("BinaryConv2d", INPUTS, outputs, name="conv_under_test", domain="ai.binarize", **attributes)


def conv_model(case: Case, functions: Sequence[onnx.FunctionProto] = (), **overrides: Any) -> bytes:
    """The one-node model of a case; neutral inputs are constants."""
    data = feeds(case)
    constants = {n: a.astype(case.stream) if a is ZERO_MAP else a for n, a in case.values.items() if n not in data}
    kinds = {"y": helper.np_dtype_to_tensor_dtype(np.dtype(case.stream)), "next_bits": TensorProto.UINT64}
    return model_bytes([conv_node(case, **overrides)], data, constants, {n: kinds[n] for n in case.outputs}, functions)


def session_options(threads: int = 1) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return options


def feeds(case: Case) -> dict[str, np.ndarray]:
    return {n: a for n, a in case.values.items() if n in DATA_INPUTS and not is_neutral(a)}


def run_kernel(case: Case, isa: str | None = None, threads: int = 1) -> dict[str, np.ndarray]:
    """Outputs of the registered kernel by name, on an instruction set or the default one."""
    if isa is not None:
        with forced_isa(isa):
            session = InferenceSession(conv_model(case), session_options(threads))
    else:
        session = InferenceSession(conv_model(case), session_options(threads))
    return dict(zip(case.outputs, session.run(list(case.outputs), feeds(case)), strict=True))


def run_function(case: Case) -> dict[str, np.ndarray]:
    """Outputs of the model-local function on stock ONNX Runtime, without our library."""
    from binarize.exporting.functions import model_local_functions

    model = conv_model(case, functions=model_local_functions())
    session = onnxruntime.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])
    return dict(zip(case.outputs, session.run(list(case.outputs), feeds(case)), strict=True))
