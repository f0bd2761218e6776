"""Let the operator that makes a map also pack it for the convs that read it: the bits cost little in its epilogue.

Where it makes none (a concatenation, a pool), one pack serves all readers. Convs with different thresholds, and convs
of several planes, read planes of their own of one packed map.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from binarize.nn.ops import WORD
from binarize.passes.base import PassContext, PassResult
from binarize.passes.choose_layout import CLIPS
from binarize.passes.lower_tools import (
    PACK,
    PACKED_CONV,
    Fused,
    PackedConv,
    add_constant,
    constant,
    item_of,
    producer_of,
    set_value_like,
)

MOST_PLANES = 64
"""Of one packed map: what the kernels make."""


class FusePacks:
    name = "fuse_packs"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        changed = 0
        left: list[Node] = []
        for node in [n for n in graph_module.graph.nodes if n.target is PACK]:
            source, threshold = node.args
            assert isinstance(source, Node) and isinstance(threshold, Node)
            node.update_arg(0, _before_clip(source, constant(threshold)))
            packings = [_Packing(other) for other in left if other.args[0] is node.args[0]]
            makers: list[_Producer | _Packing] = [*_producers(node), *packings]
            if any(_make_bits(graph_module, maker, node) for maker in makers):
                changed += 1
                graph_module.graph.erase_node(node)
            else:
                left.append(node)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, changed)


@dataclass(frozen=True)
class _Producer:
    """The operator that makes a map, as the maker of its bits."""

    fused: Fused

    @property
    def node(self) -> Node:
        return self.fused.node

    @property
    def bits(self) -> Node | None:
        return item_of(self.node, 1)

    @property
    def threshold(self) -> Tensor:
        return self.fused.value("next_threshold")

    def serve(self, pack: Node, threshold: Node) -> None:
        """Make the bits of `threshold`, in which those that `pack` wants are the last."""
        self.fused.update(next_threshold=threshold)


@dataclass(frozen=True)
class _Packing:
    """A pack of the map, as the maker of its bits: reading the map once for all is what it costs."""

    node: Node

    @property
    def bits(self) -> Node:
        return self.node

    @property
    def threshold(self) -> Tensor:
        return constant(self.node.args[1])  # type: ignore[arg-type]

    def serve(self, pack: Node, threshold: Node) -> None:
        """As a producer does; whose planes they are is what the proof asks."""
        self.node.update_arg(1, threshold)
        self.node.meta["readers"] = [*self.node.meta["readers"], *pack.meta["readers"]]
        planes, channels = constant(threshold).shape
        set_value_like(self.node, self.node, lambda v: v.new_empty(*v.shape[:-1], planes * -(-channels // WORD)))


def _before_clip(source: Node, threshold: torch.Tensor) -> Node:
    """What a hardtanh or clamp is applied to, where it moves no value across the threshold."""
    if source.target not in CLIPS or source.kwargs or not isinstance(source.args[0], Node):
        return source
    limits: tuple[Any, ...] = (*source.args[1:], *CLIPS[source.target][len(source.args) - 1 :])
    low, high = limits[:2]
    harmless = (low is None or torch.all(threshold >= low)) and (high is None or torch.all(threshold < high))
    return source.args[0] if harmless else source


def _producers(pack: Node) -> list[_Producer]:
    """What makes the map that `pack` packs, if that can make bits too."""
    fused = producer_of(pack.args[0])  # type: ignore[arg-type]
    return [] if fused is None else [_Producer(fused)]


def _make_bits(graph_module: GraphModule, maker: _Producer | _Packing, pack: Node) -> bool:
    """Give the readers of `pack` bits that `maker` makes, if it can; `pack` has no reader then."""
    threshold = pack.args[1]
    assert isinstance(threshold, Node)
    wanted = constant(threshold)
    if wanted.dim() > 1 and len(wanted) > MOST_PLANES:
        return False
    bits = maker.bits
    if bits is None:
        _set_threshold(graph_module, maker, wanted, str(threshold.target), pack)
        with graph_module.graph.inserting_after(pack.args[0]):  # type: ignore[arg-type]
            pack.replace_all_uses_with(graph_module.graph.call_function(operator.getitem, (maker.node, 1)))
        return True
    if torch.equal(maker.threshold, wanted):
        pack.replace_all_uses_with(bits)
        return True
    readers = [_reader_of_planes(user, of) for of in (bits, pack) for user in of.users]
    if not all(readers):
        return False
    channels = next(reader.geometry.in_channels for reader in readers if reader is not None)
    made, wanted = _rows(maker.threshold, channels), _rows(wanted, channels)
    first = _place_of(wanted, made)
    if first is None:
        first, made = len(made), torch.cat([made, wanted])
        if len(made) > MOST_PLANES:
            return False
        _set_threshold(graph_module, maker, made, f"{threshold.target}_planes", pack)
    for user in list(pack.users):
        reader = PackedConv(user)
        reader.update(bits=bits, terms=list(reader.terms._replace(first_plane=first)))
    return True


def _reader_of_planes(user: Node, bits: Node) -> PackedConv | None:
    """`user`, if it is a conv, which can read any planes of `bits`."""
    reads = user.target is PACKED_CONV and list(user.args).count(bits) == 1 and PackedConv(user)["bits"] is bits
    return PackedConv(user) if reads else None


def _rows(threshold: Tensor, channels: int) -> Tensor:
    """One per plane, `[planes, channels]`."""
    return threshold.view(-1, threshold.shape[-1]).expand(-1, channels)


def _place_of(wanted: Tensor, made: Tensor) -> int | None:
    """Where the planes `wanted` lie among those that are `made`, one behind the other."""
    places = range(len(made) - len(wanted) + 1)
    return next((first for first in places if torch.equal(made[first : first + len(wanted)], wanted)), None)


def _set_threshold(
    graph_module: GraphModule, maker: _Producer | _Packing, value: Tensor, name: str, pack: Node
) -> None:
    """A constant of the maker's own: the pack's may have other readers, and lies behind the maker."""
    maker.serve(pack, add_constant(graph_module, name.replace(".", "_"), value, maker.node))
