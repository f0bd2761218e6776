"""Layer against layer: the profiles of several files of one network, joined by module path."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.bench.profile import NodeTime, Profile
from binarize.bench.timing import Spread
from binarize.runtime.library import DOMAIN

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "Gemm", "MatMul")
OURS = ("BinaryConv2d", "Int8Conv2d")
"""Our operators with weights; their nodes have the names of their modules."""
FUSED_BEHIND = (
    "Add", "BatchNormalization", "Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"
)  # fmt: skip
"""What ONNX Runtime fuses into a float conv, which then bears the name of the last one's output."""
OTHER = "(everything else)"
NOISE = 0.05
"""Differences up to this share are the profiler's and not the layer's."""
_GENERATED = re.compile(r"^fused |(_nchwc|_token_\d+|_quant)+$")
"""What ONNX Runtime's optimizations add to a name."""


@dataclass(frozen=True)
class LayerTime:
    """One layer in every file.

    Attributes:
        layer: module path; `OTHER` for all that belongs to no layer with weights.
        op: the operator in the first file.
        times: milliseconds of each run, by file; a file that lacks the layer is left out.
    """

    layer: str
    op: str
    times: dict[str, tuple[float, ...]]

    @property
    def milliseconds(self) -> dict[str, float]:
        """Medians over the runs, by file."""
        return {name: statistics.median(times) for name, times in self.times.items()}

    def speedup(self, name: str) -> float | None:
        """How many times as fast as in the file `name` the layer is in the first file."""
        first, *_ = self.milliseconds.values()
        other = self.milliseconds.get(name)
        return None if other is None else other / max(first, 1e-9)


def layer_times(profiles: Mapping[str, Profile], files: Mapping[str, str | Path]) -> list[LayerTime]:
    """The layers of the first file, each beside the same layer of the others, and what is left of each file, layers
    that the first one lacks included.

    A layer is a node with weights and everything that was fused into it: a binary conv brings its batch norm, link,
    residual and activation, a float one what ONNX Runtime fused. The two layers of a `Gate` are not told apart: it is
    left over, and so are they in the other files.

    Args:
        profiles: from `profile`, by name.
        files: the same names' ONNX files.
    """
    import onnx

    owners = {name: layers_by_name(onnx.load(files[name], load_external_data=False)) for name in profiles}
    sums = {name: _sums(found, owners[name]) for name, found in profiles.items()}
    first = next(iter(profiles))
    ops = {_layer_of(node, owners[first]): node.op for node in reversed(profiles[first].nodes)}
    layers = [layer for layer in sums[first] if layer != OTHER]
    for found in sums.values():
        found[OTHER] = _added(found[OTHER], *(times for layer, times in found.items() if layer not in sums[first]))
    return [
        LayerTime(
            layer,
            "" if layer == OTHER else ops[layer],
            {name: found[layer] for name, found in sums.items() if layer in found},
        )
        for layer in (*layers, OTHER)
    ]


def slower_layers(layers: list[LayerTime], name: str) -> list[LayerTime]:
    """The layers in which the first file loses time against the file `name`, by more than `NOISE`."""
    return [layer for layer in layers if (ratio := layer.speedup(name)) is not None and ratio < 1 - NOISE]


def layers_by_name(model: onnx.ModelProto) -> dict[str, str]:
    """From the names of nodes with weights, and of tensors they give, to the module path of their layer.

    The path is the node's own name for binary operators, else the weight's (`layer1.0.conv1.weight`) or the node's
    scope (`/layer1/layer1.0/conv1/Conv`), and where a file has neither, the node's name.
    """
    constants = _weight_names(model)
    found: dict[str, str] = {}
    for node in model.graph.node:
        layer = _own_layer(node, constants)
        if layer is not None:
            found[node.name] = layer
        elif node.op_type in FUSED_BEHIND and node.input[0] in found:
            layer = found[node.input[0]]
        if layer is not None:
            found.update((name, layer) for name in node.output if name)
    return found


def _own_layer(node: onnx.NodeProto, constants: Mapping[str, str]) -> str | None:
    if node.domain == DOMAIN:
        return node.name if node.op_type in OURS else None
    if node.op_type not in WEIGHTED or len(node.input) < 2 or node.input[1] not in constants:
        return None
    weight = constants[node.input[1]]
    return weight.removesuffix(".weight") if weight.endswith(".weight") else _from_scope(node.name)


def _weight_names(model: onnx.ModelProto) -> dict[str, str]:
    """Constants, also those behind a DequantizeLinear, with the name the weight had before it was quantized."""
    found = {tensor.name: tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in found:
            found[node.output[0]] = node.input[0].removesuffix("_quantized")
    return found


def _from_scope(name: str) -> str:
    """`/layer1/layer1.0/conv1/Conv` -> `layer1.0.conv1`; a name without slashes stays."""
    parts = [part for part in name.split("/") if part]
    if len(parts) < 2:
        return name
    path = ""
    for part in parts[:-1]:
        path = part if not path or part.startswith(path + ".") else f"{path}.{part}"
    return path


def _layer_of(node: NodeTime, owners: Mapping[str, str]) -> str:
    return owners.get(node.name) or owners.get(_GENERATED.sub("", node.name)) or OTHER


def _sums(profile: Profile, owners: Mapping[str, str]) -> dict[str, tuple[float, ...]]:
    """Milliseconds of each run by layer, in order of execution."""
    nothing = (0.0,) * len(profile.nodes[0].times)
    sums: dict[str, tuple[float, ...]] = {}
    for node in profile.nodes:
        layer = _layer_of(node, owners)
        sums[layer] = _added(sums.get(layer, nothing), node.times)
    return sums | {OTHER: sums.get(OTHER, nothing)}


def _added(*times: tuple[float, ...]) -> tuple[float, ...]:
    """Run by run."""
    return tuple(map(sum, zip(*times, strict=True)))


def layers_document(layers: list[LayerTime]) -> list[dict[str, Any]]:
    """Plain data for `--json`."""
    return [
        {
            "layer": item.layer,
            "op": item.op,
            "milliseconds": {name: Spread.of(times).to_dict() for name, times in item.times.items()},
        }
        for item in layers
    ]
