"""A binary network's time by kind of conv, as the limit is another for each: counting, or all that stands beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from binarize.bench.profile import Profile
from binarize.runtime.library import DOMAIN

KINDS = (
    "1x1, more channels",
    "1x1, fewer channels",
    "1x1, as many",
    "1x1, strided",
    "larger kernels",
    "grouped",
    DEPTHWISE := "depthwise",
    LINEAR := "of one pixel",
)
"""Of binary convs; the last are linear layers."""
UNLIMITED = ("grouped", DEPTHWISE, LINEAR)
"""Popcounts are no limit of these: groups are counted by whole words, depthwise convs in bit slices, and linear layers
wait for their weights."""


def times_by_kind(profile: Profile, file: str | Path) -> dict[str, dict[str, float]]:
    """Of each of `KINDS` that the ONNX `file` has: `nodes`, `milliseconds`, values written or counted as `outputs`, and
    multiply-accumulates as `macs`, those with padding included.
    """
    graph = onnx.load(file, load_external_data=False).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    convs = {node.name: node for node in graph.node if (node.domain, node.op_type) == (DOMAIN, "BinaryConv2d")}
    sums: dict[str, dict[str, float]] = {}
    for timed in profile.nodes:
        if timed.name not in convs:
            continue
        conv = convs[timed.name]
        kind, channels, fan_in = _conv(conv, weights[conv.input[1]])
        outputs = math.prod(timed.shape[:3]) * channels
        kind = LINEAR if timed.shape[1:3] == (1, 1) else kind
        row = sums.setdefault(kind, {"nodes": 0, "milliseconds": 0, "outputs": 0, "macs": 0})
        for name, value in {
            "nodes": 1, "milliseconds": timed.milliseconds, "outputs": outputs, "macs": outputs * fan_in
        }.items():  # fmt: skip
            row[name] += value
    return {kind: sums[kind] for kind in KINDS if kind in sums}


def _conv(node: onnx.NodeProto, weight: Sequence[int]) -> tuple[str, int, int]:
    """Its kind, its output channels, and the products that one output is the sum of."""
    attributes: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    group, channels, bases = attributes["group"], attributes["channels"], attributes["bases"]
    rows, height, width, _ = weight
    out_channels = rows * group // bases
    fan_in = height * width * (channels // group) * bases * attributes["planes"]
    if group > 1:
        kind = "depthwise" if group == channels else "grouped"
    elif height * width > 1:
        kind = "larger kernels"
    elif max(attributes["strides"]) > 1:
        kind = "1x1, strided"
    elif out_channels == channels:
        kind = "1x1, as many"
    else:
        kind = "1x1, more channels" if out_channels > channels else "1x1, fewer channels"
    return kind, out_channels, fan_in
