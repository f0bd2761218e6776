"""Single layers as ONNX: a float conv, and our operators with the same floats in and out as a peer's binary conv."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.kernels import Layer

OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("ai.binarize", 1)]


def float_layer(layer: Layer) -> onnx.ModelProto:
    """A float32 conv with a bias."""
    random = np.random.default_rng(0)
    shape = (layer.out_channels, layer.channels, layer.kernel, layer.kernel)
    constants = {
        "w": (random.standard_normal(shape) * 0.05).astype(np.float32),
        "b": random.standard_normal(layer.out_channels).astype(np.float32),
    }
    pad = layer.kernel // 2
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", strides=[layer.stride] * 2, pads=[pad] * 4)
    return _model([node], layer, constants)


def binary_chain(layer: Layer, links: int) -> onnx.ModelProto:
    """`links` convs of the layer's shape, every second one with its channels swapped, and no Elastic Links (a peer has
    none); floats in and out, bits in between."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["nhwc"], "enter", perm=[0, 2, 3, 1]),
        helper.make_node("Pack", ["nhwc", "threshold"], ["bits"], "pack", domain="ai.binarize"),
    ]
    constants: dict[str, np.ndarray] = {
        "threshold": np.zeros(1, np.float32),
        "none": np.zeros((1, 1, 1, 1), np.float32),
        "one": np.ones(1, np.float32),
        "zero": np.zeros(1, np.float32),
    }
    bits = "bits"
    for index in range(links):
        there, last = (layer.channels, layer.out_channels), index == links - 1
        channels, out_channels = there[::-1] if index % 2 else there
        constants |= _parameters(layer, channels, out_channels, index)
        outputs = ["nhwc_y", ""] if last else ["", f"bits_{index}"]
        nodes.append(_conv(layer, channels, bits, outputs, index))
        bits = f"bits_{index}"
    nodes.append(helper.make_node("Transpose", ["nhwc_y"], ["y"], "leave", perm=[0, 3, 1, 2]))
    return _model(nodes, layer, constants)


def _parameters(layer: Layer, channels: int, out_channels: int, index: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(index)
    words = random.integers(0, 1 << 63, (out_channels, layer.kernel, layer.kernel, -(-channels // 64)), dtype=np.uint64)
    vector = {name: random.standard_normal(out_channels).astype(np.float32) for name in ("scale", "bias")}
    return {f"weight_{index}": words, **{f"{name}_{index}": values for name, values in vector.items()}}


def _conv(layer: Layer, channels: int, bits: str, outputs: list[str], index: int) -> onnx.NodeProto:
    names = [f"weight_{index}", f"scale_{index}", f"bias_{index}", "none", "one", "none", "one", "zero", "zero"]
    attributes: dict[str, Any] = {
        "channels": channels,
        "group": 1,
        "strides": [layer.stride] * 2,
        "pads": [layer.kernel // 2] * 4,
        "dilations": [1, 1],
    }
    return helper.make_node(
        "BinaryConv2d", [bits, *names], outputs, f"conv_{index}", domain="ai.binarize", **attributes
    )


def _model(nodes: list[onnx.NodeProto], layer: Layer, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, layer.channels, layer.size, layer.size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=9)
