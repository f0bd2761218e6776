"""How far apart equal computations may be: what rounding and a float16 stream explain, per channel and per bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from binarize.exporting.forced import is_forced, maker_of, moves
from binarize.nn.functional import map_channels
from binarize.nn.ops import geometry_from_ints
from binarize.passes.lower_tools import Fused, constant

ULP = 2.0**-24
ROUNDINGS = 64
"""Float32 roundings granted to an epilogue. An accumulator wrong by one count is always more: it moves the value by
`2 * scale`, and the grant is `64 * 2^-24 * n * scale`, which is less for every fan-in n below 500 000."""
FLOAT_TOLERANCE = 1e-4
"""Relative to the largest value, for float layers (stem, classifier), which sum thousands of terms in another order."""

STREAM_TOLERANCE = 2.0**-9
"""The same for outputs behind a float16 stream: four roundings of its largest value."""


@dataclass(frozen=True)
class Bounds:
    """How far apart equal computations may be.

    Attributes:
        values: of the fused graph's compared nodes on forced values.
        sizes: the largest size in each of its float tensors.
        moved: how far a float16 stream's roundings, carried through float layers, move what these give.
    """

    values: dict[str, Any]
    sizes: dict[str, float]
    moved: dict[str, float]

    def near(self, value: Tensor, threshold: Node, tolerance: Any) -> np.ndarray:
        """Where a bit may be either, `[..., planes, C]`."""
        thresholds = constant(threshold)
        by_plane = value.unsqueeze(-2) - thresholds.view(-1, thresholds.shape[-1])
        return (by_plane.abs().numpy() <= tolerance) & (np.asarray(tolerance) > 0)

    def drift(self, node: Node) -> float:
        """How far `node`'s value may be off in the cut model: not at all where forced values are only moved about."""
        if node.op in ("placeholder", "get_attr") or is_forced(node):
            return 0.0
        if moves(node) or node.name not in self.sizes:
            return max((self.drift(i) for i in node.all_input_nodes), default=0.0)
        return max(FLOAT_TOLERANCE, 2 * _unit(node)) * self.largest(node) + self.moved.get(node.name, 0.0)

    def off(self, node: Any) -> float:
        """How far it may be from the trained model's value: a float16 stream rounds that on top."""
        return self.drift(node) + _unit(node) * self.largest(node)

    def largest(self, node: Any) -> float:
        return self.sizes[node.name]

    def of_pack(self, pack: Node) -> np.ndarray:
        """A map that lacks a shift was rounded when that was taken from it, and so was its threshold."""
        x, threshold = pack.args
        assert isinstance(threshold, Node)
        lacks = maker_of(x).meta.get("offset", torch.zeros(1)).abs()
        moved = constant(threshold).abs() + 2 * lacks
        return (self.off(x) + 4 * ULP * torch.where(lacks > 0, moved, 0)).numpy()

    def of_pool(self, pool: Node) -> float:
        return self.off(pool.args[0]) + (ROUNDINGS * ULP + 2 * _unit(pool)) * self.largest(pool.args[0])

    def of_epilogue(self, fused: Fused, value: Tensor) -> np.ndarray:
        """Per output channel of what is stored."""
        return (self._of_sum(fused) + self._rounded(fused, value)).expand(value.shape[-1]).numpy()

    def _rounded(self, fused: Fused, value: Tensor) -> Tensor:
        """A float16 stream rounds twice: what the node gives, and what it is compared with."""
        return 2 * _unit(fused.node) * value.abs().amax((0, 1, 2))

    def _of_sum(self, fused: Fused) -> Tensor:
        """Before it is stored: the sum of the terms' sizes times `ROUNDINGS` ulp, and what their inputs may be off."""
        size, off, summed = fused.value("bias").abs(), torch.zeros(1), 1
        if fused.has("geometry"):
            g = geometry_from_ints(fused["geometry"])
            summed = max(1, -(-g.in_channels // g.out_channels))
            counts = g.in_channels // g.groups * g.kernel[0] * g.kernel[1]
            scale = counts * fused.value("scale").abs().view(-1, fused.value("scale").shape[-1]).sum(0)
            factors = "gate", "factor"
        else:
            scale, factors = fused.value("scale").abs(), ("x", "gate")
        first, second = (self.largest(fused[name]) for name in factors)
        size = size + scale * first * second
        off = off + scale * (second * self.off(fused[factors[0]]) + first * self.off(fused[factors[1]]))
        if not fused.absent("link"):
            gamma = fused.value("gamma").abs() * summed
            size = size + gamma * self.largest(fused["link"])
            off = off + gamma * self.off(fused["link"])
        if not fused.absent("residual"):
            size = size + self.largest(fused["residual"])
            off = off + self.off(fused["residual"])
        steepest = fused.value("slope").abs().clamp_min(1.0)
        size = size * steepest + fused.value("shift").abs() + fused.node.meta.get("offset", torch.zeros(1)).abs()
        return ROUNDINGS * ULP * size + off * steepest

    def of_link(self, fused: Fused, link: Tensor, channels: int) -> np.ndarray:
        """Of the link that `fused` squeezes out of so many channels, which are not stored."""
        gamma = fused.value("gamma").abs()
        values = self._of_sum(fused).expand(channels)[None, :, None, None]
        summed = map_channels(values, len(gamma)).flatten()
        return (gamma * summed + self._rounded(fused, link)).numpy()


def _unit(node: Node) -> float:
    """Relative rounding error of what a float16 stream stores; a float32 one rounds in `ROUNDINGS`."""
    return 2.0**-11 if node.meta.get("stream") == torch.float16 else 0.0
