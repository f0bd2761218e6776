"""The float stem of a binary model as one `Int8Conv2d` (docs/ops.md): conv, pool, activation, layout and first signs.

It takes `Conv (Relu) (MaxPool) Transpose (Activate)` or `Conv Transpose Activate MaxPool (Pack)`, where the conv is
dense and all but the last node have one reader; the second pool may have more, of which one is a `Pack`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from binarize.exporting.functions import DOMAIN

_TO_NHWC = [0, 2, 3, 1]
_MOST_TERMS = 1 << 16
_MOST_POOL = 64


@dataclass
class Stem:
    """The nodes that become one `Int8Conv2d`.

    Attributes:
        conv, transpose: always there.
        relu, pool, activate: None where the model has none, or one that does not fit.
        map_pool, pack: the same of those behind `activate`.
    """

    conv: onnx.NodeProto
    transpose: onnx.NodeProto
    relu: onnx.NodeProto | None = None
    pool: onnx.NodeProto | None = None
    activate: onnx.NodeProto | None = None
    map_pool: onnx.NodeProto | None = None
    pack: onnx.NodeProto | None = None

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """In order of execution."""
        found = (self.conv, self.relu, self.pool, self.transpose, self.activate, self.map_pool, self.pack)
        return [node for node in found if node is not None]

    @property
    def outputs(self) -> list[str]:
        """The names of `y` and `next_bits`."""
        if self.map_pool is not None:
            return [self.map_pool.output[0], "" if self.pack is None else self.pack.output[0]]
        return [self.transpose.output[0], ""] if self.activate is None else list(self.activate.output)


class _Graph:
    """A model's constants and readers by tensor name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {item.name for item in model.graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def only_reader(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Who alone reads the first output of `node`."""
        readers = self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 and node.output[0] not in self.outputs else None

    def array(self, name: str) -> np.ndarray | None:
        """The constant of that name, if it is one."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def arrays(self, names: Iterable[str]) -> list[np.ndarray] | None:
        """The constants of these names, if all are constants."""
        found = [self.array(name) for name in names]
        known = [array for array in found if array is not None]
        return known if len(known) == len(found) else None


def find_stem(model: onnx.ModelProto, conv: onnx.NodeProto) -> Stem | None:
    """The stem that starts with the float `conv`, or None if it has no such form."""
    graph = _Graph(model)
    if not _fits(graph, conv):
        return None
    relu, pool = None, None
    node = graph.only_reader(conv)
    if node is not None and node.domain == "" and node.op_type == "Relu":
        relu, node = node, graph.only_reader(node)
    if node is not None and node.domain == "" and _is_plain_pool(node):
        pool, node = node, graph.only_reader(node)
    if node is None or node.op_type != "Transpose" or _attributes(node).get("perm") != _TO_NHWC:
        return None
    stem = Stem(conv, node, relu, pool)
    activate = graph.only_reader(node)
    if activate is not None and _takes_activate(graph, stem, activate):
        stem.activate = activate
        if stem.pool is None and not any(activate.output[1:]):
            _take_map_pool(graph, stem, graph.only_reader(activate))
    return stem


def _take_map_pool(graph: _Graph, stem: Stem, pool: onnx.NodeProto | None) -> None:
    """Adds the pool of the activated map, and the signs of what it gives if they are all of one `Pack`."""
    if pool is None or pool.domain != DOMAIN or not _is_plain_pool(pool):
        return
    stem.map_pool = pool
    packs = [node for node in graph.readers.get(pool.output[0], []) if node.op_type == "Pack"]
    if len(packs) == 1 and graph.array(packs[0].input[1]) is not None:
        stem.pack = packs[0]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _fits(graph: _Graph, conv: onnx.NodeProto) -> bool:
    attributes, weight = _attributes(conv), graph.array(conv.input[1]) if len(conv.input) > 1 else None
    if conv.op_type != "Conv" or weight is None or weight.ndim != 4 or weight[0].size > _MOST_TERMS:
        return False
    if len(conv.input) > 2 and conv.input[2] and graph.array(conv.input[2]) is None:
        return False
    plain = attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and set(attributes.get("dilations", [1])) == {1}
    return plain and attributes.get("group", 1) == 1


def _is_plain_pool(node: onnx.NodeProto) -> bool:
    if node.op_type != "MaxPool" or len(node.output) != 1:
        return False
    a = _attributes(node)
    kernel, pads = a["kernel_shape"], a.get("pads", [0, 0, 0, 0])
    plain = a.get("auto_pad", b"NOTSET") == b"NOTSET" and not a.get("ceil_mode", 0)
    plain = plain and set(a.get("dilations", [1])) == {1} and len(kernel) == 2 and kernel[0] <= _MOST_POOL
    return plain and all(pad < side for pad, side in zip(pads, [*kernel, *kernel], strict=True))


def _takes_activate(graph: _Graph, stem: Stem, node: onnx.NodeProto) -> bool:
    """Whether `node` can be the epilogue: all but its map is constant; no scale turns the order behind a pool round."""
    if node.domain != DOMAIN or node.op_type != "Activate" or node.input[0] != stem.transpose.output[0]:
        return False
    constants = graph.arrays(node.input[1:])
    if stem.relu is not None or constants is None:
        return False
    gate, scale, _, residual, *_ = constants
    neutral = [a.shape == (1, 1, 1, 1) and a.item() == value for a, value in ((gate, 1), (residual, 0))]
    return all(neutral) and (stem.pool is None or bool(np.all(scale > 0)))


def quantize_stem(model: onnx.ModelProto, stem: Stem, low: float, high: float) -> None:
    """Replace the nodes of `stem` by one `Int8Conv2d`; one scale per output channel.

    Args:
        model: changed in place.
        stem: from `find_stem`.
        low, high: the range of the image, which the 256 steps cover together with 0.
    """
    constants = _Constants(model, stem.conv.input[1].removesuffix(".weight"))
    names = _parameters(_Graph(model), stem, constants, low, high)
    conv = _attributes(stem.conv)
    windows = {"strides": conv.get("strides", [1, 1]), "pads": conv.get("pads", [0, 0, 0, 0])}
    pool_node = stem.pool or stem.map_pool
    if pool_node is not None:
        pool = _attributes(pool_node)
        windows["pool_shape"] = pool["kernel_shape"]
        windows["pool_strides"] = pool.get("strides", [1, 1])
        windows["pool_pads"] = pool.get("pads", [0, 0, 0, 0])
    if stem.map_pool is not None:
        windows["pools_values"] = 1
    node = helper.make_node(
        "Int8Conv2d", [stem.conv.input[0], *names], stem.outputs, name=constants.prefix, domain=DOMAIN, **windows
    )
    first = next(i for i, n in enumerate(model.graph.node) if n is stem.conv or n == stem.conv)
    model.graph.node.insert(first, node)  # all that it reads but the image is constant
    for old in stem.nodes:
        model.graph.node.remove(old)
    read = {name for n in model.graph.node for name in n.input}
    for i, name in enumerate(node.output):
        if name not in read | {output.name for output in model.graph.output}:
            model.graph.node[first].output[i] = ""  # what nobody reads is not made
    for tensor in [t for t in model.graph.initializer if t.name not in read]:
        model.graph.initializer.remove(tensor)


@dataclass
class _Constants:
    """Adds constants to a model."""

    model: onnx.ModelProto
    prefix: str
    names: list[str] = field(default_factory=list)

    def add(self, suffix: str, value: np.ndarray) -> str:
        name = f"{self.prefix}.{suffix}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def _parameters(graph: _Graph, stem: Stem, constants: _Constants, low: float, high: float) -> list[str]:
    """The names of the node's inputs behind the image."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255 or 1.0
    weight = graph.array(stem.conv.input[1])
    assert weight is not None
    steps = np.abs(weight).max(axis=(1, 2, 3)).astype(np.float64) / 127
    steps[steps == 0] = 1
    quantized = np.rint(weight / steps[:, None, None, None]).clip(-127, 127).astype(np.int8)
    scale, bias = steps * step, np.zeros(1)
    if len(stem.conv.input) > 2 and stem.conv.input[2]:
        bias = graph.array(stem.conv.input[2]).astype(np.float64)  # type: ignore[union-attr]
    slope, shift, threshold, residual = _epilogue(graph, stem)
    if stem.activate is not None:
        own_scale, own_bias = (graph.array(stem.activate.input[i]).astype(np.float64) for i in (2, 3))  # type: ignore
        scale, bias = scale * own_scale, bias * own_scale + own_bias
    return [
        constants.add("factor", np.array([1 / step], np.float32)),
        constants.add("zero_point", np.array([np.rint(-low / step)], np.uint8)),
        constants.add("weight_int8", quantized),
        constants.add("scale", np.broadcast_to(scale, len(weight)).astype(np.float32)),
        constants.add("bias", bias.astype(np.float32)),
        constants.add("residual", residual),
        constants.add("slope", slope),
        constants.add("shift", shift),
        constants.add("next_threshold", threshold),
    ]


def _epilogue(graph: _Graph, stem: Stem) -> list[np.ndarray]:
    """Slope, shift, threshold, and the neutral residual, whose type is the stream's."""
    zero = np.zeros(1, np.float32)
    if stem.activate is None:
        slope = np.full(1, 1 if stem.relu is None else 0, np.float32)
        return [slope, zero, zero, np.zeros((1, 1, 1, 1), np.float32)]
    names = [stem.activate.input[i] for i in (5, 6, 7, 4)]
    if stem.pack is not None:
        names[2] = stem.pack.input[1]
    arrays = graph.arrays(names)
    assert arrays is not None, "the stem took an activation whose numbers are computed"
    return arrays
