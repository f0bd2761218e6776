"""Static int8 of ONNX models (QDQ, uint8 activations, int8 weights): a whole float net, or a binary net's float ends.

ONNX Runtime's quantizer inserts the QuantizeLinear and DequantizeLinear nodes, and its optimizer turns them into
integer kernels when a session is made. The ranges come from runs of our own session, because the quantizer's own
calibration cannot load the op library.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from binarize.errors import UnsupportedModelError
from binarize.exporting.emit import DOMAIN
from binarize.exporting.int8_stem import find_stem, quantize_stem
from binarize.lowering.quiet import errors_alone
from binarize.progress import Listener, ProgressEvent, silent
from binarize.runtime import InferenceSession

WEIGHTED = ("Conv", "Gemm", "MatMul")
Feeds = Mapping[str, np.ndarray]


def quantize_all(model: onnx.ModelProto, batches: Iterable[Feeds], progress: Listener = silent) -> onnx.ModelProto:
    """A float model with every operator that ONNX Runtime has in int8 quantized: what it is at its fastest.

    One scale per weight tensor, not per channel, which is the quicker of the two.

    Args:
        model: float32, standard operators.
        batches: inputs that set the ranges (minimum and maximum) of the activations.

    Raises:
        UnsupportedModelError: there is nothing to quantize.
    """
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    model = _folded(model)
    nodes = [node for node in model.graph.node if node.op_type in {*QDQRegistry, *QLinearOpsRegistry}]
    _require_any(nodes)
    return _quantize(model, nodes, _ranges(model, _activations(model, nodes), batches, progress), per_channel=False)


def quantize_ends(model: onnx.ModelProto, batches: Iterable[Feeds], progress: Listener = silent) -> onnx.ModelProto:
    """A binary model with its float ends in int8: the layers before its first and behind its last binary operator.

    These are the stem and the classifier. One scale per output channel: the ends are where a network is sensitive.
    A stem of the usual form becomes one operator of ours (`exporting/int8_stem.py`), all else is QDQ.

    Args:
        model: from `emit`.
        batches: see `quantize_all`.

    Raises:
        UnsupportedModelError: there is nothing to quantize.
    """
    ends = float_ends(model)
    _require_any(ends)
    ranges = _ranges(model, _activations(model, ends), batches, progress)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for conv in float_ends(copy):
        stem = find_stem(copy, conv)
        if stem is not None:
            low, high = ranges[conv.input[0]]
            quantize_stem(copy, stem, float(low), float(high))
    kept = float_ends(copy)
    if not kept:
        return copy
    read = _activations(copy, kept)
    return _quantize(copy, kept, {name: ranges[name] for name in read if name in ranges}, per_channel=True)


def top1_agreement(model: onnx.ModelProto, other: onnx.ModelProto, batches: Iterable[Feeds]) -> float:
    """Share of the images, 0 to 1, for which both models' first output is largest in the same place."""
    first, second = (InferenceSession(m.SerializeToString()) for m in (model, other))
    same = [
        first.run(None, dict(feeds))[0].argmax(1) == second.run(None, dict(feeds))[0].argmax(1) for feeds in batches
    ]
    return float(np.mean(np.concatenate(same)))


def float_ends(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Convs and linear layers with constant weights that no binary operator precedes or none follows."""
    before, behind = _reach(model, forward=True), _reach(model, forward=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for index, node in enumerate(model.graph.node)
        if node.op_type in WEIGHTED and node.input[1] in constants and not (index in before and index in behind)
    ]


def _reach(model: onnx.ModelProto, forward: bool) -> set[int]:
    """Indices of the nodes that depend on a binary operator (`forward`), or that one depends on."""
    nodes = list(enumerate(model.graph.node))
    reached: set[int] = set()
    names: set[str] = set()
    for index, node in nodes if forward else reversed(nodes):
        sources, results = (node.input, node.output) if forward else (node.output, node.input)
        if node.domain == DOMAIN or names.intersection(sources):
            reached.add(index)
            names.update(name for name in results if name)
    return reached


def _quantize(
    model: onnx.ModelProto,
    nodes: Collection[onnx.NodeProto],
    ranges: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    per_channel: bool,
) -> onnx.ModelProto:
    """`model` with QDQ around `nodes`, whose activations have these `ranges`."""
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    known = {item.name for item in (*copy.graph.input, *copy.graph.output)}
    copy.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ranges if name not in known
    )
    with errors_alone(logging.root):  # it logs advice and every tensor that it leaves out
        quantizer = QDQQuantizer(
            copy,
            per_channel,
            False,  # reduce_range: for CPUs whose int8 products saturate, which costs a bit of every weight
            QuantType.QInt8,
            QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, dict(ranges)),
            [node.name for node in nodes],
            [],
            sorted({node.op_type for node in nodes}),
            {},
        )
        quantizer.quantize_model()
    quantized: onnx.ModelProto = quantizer.model.model
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    del quantized.graph.value_info[:]
    return quantized


def _require_any(nodes: Collection[onnx.NodeProto]) -> None:
    if not nodes:
        raise UnsupportedModelError(
            "the model has no float layer to quantize to int8", hint="leave out the option that asks for int8"
        )


def _activations(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """The float tensors that `nodes` read and write, constants left out."""
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [name for node in nodes for name in (*node.input, *node.output) if name and name not in constants]
    return list(dict.fromkeys(names))


def _ranges(
    model: onnx.ModelProto, names: list[str], batches: Iterable[Feeds], progress: Listener
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Minimum and maximum of every float tensor of `names` over the `batches`."""
    inputs = [name for name in names if any(item.name == name for item in model.graph.input)]
    inner = [name for name in names if name not in inputs]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    session = _session(probe)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for count, feeds in enumerate(batches, 1):
        values = dict(zip(inner, session.run(None, dict(feeds)), strict=True))
        values.update({name: feeds[name] for name in inputs})
        for name, value in values.items():
            if value.dtype == np.float32 and value.size:
                found[name] = _widened(found.get(name), value)
        progress(ProgressEvent("calibrating int8", count, 0))
    return found


def _widened(known: tuple[np.ndarray, np.ndarray] | None, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = value.min(), value.max()
    return (low, high) if known is None else (np.minimum(low, known[0]), np.maximum(high, known[1]))


def _session(model: onnx.ModelProto) -> InferenceSession:
    """A session that computes what the file says, node by node, so that every tensor can be read."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return InferenceSession(model.SerializeToString(), options)


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` after ONNX Runtime's basic optimizations: batch norms and constants folded, as int8 needs it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        InferenceSession(model.SerializeToString(), options)
        return onnx.load(path)


def batches_of(inputs: Mapping[str, np.ndarray], size: int = 1) -> Iterator[Feeds]:
    """`inputs` [N, ...] by name as feeds of `size` examples each."""
    count = min(len(values) for values in inputs.values())
    for start in range(0, count, size):
        yield {name: np.ascontiguousarray(values[start : start + size]) for name, values in inputs.items()}
