"""Let the operator that makes a map also pack it for the convs that read it: the bits cost little in its epilogue.

Convs with different thresholds, and convs of several planes, read planes of their own of one packed map.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

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
            if _fuse(graph_module, node):
                changed += 1
            elif (same := next((other for other in left if _same_bits(other, node)), None)) is not None:
                node.replace_all_uses_with(same)
                changed += 1
            else:
                left.append(node)
                continue
            graph_module.graph.erase_node(node)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, changed)


def _same_bits(pack: Node, other: Node) -> bool:
    thresholds = [constant(node.args[1]) for node in (pack, other)]  # type: ignore[arg-type]
    return pack.args[0] is other.args[0] and torch.equal(*thresholds)


def _before_clip(source: Node, threshold: torch.Tensor) -> Node:
    """What a hardtanh or clamp is applied to, where it moves no value across the threshold."""
    if source.target not in CLIPS or source.kwargs or not isinstance(source.args[0], Node):
        return source
    limits: tuple[Any, ...] = (*source.args[1:], *CLIPS[source.target][len(source.args) - 1 :])
    low, high = limits[:2]
    harmless = (low is None or torch.all(threshold >= low)) and (high is None or torch.all(threshold < high))
    return source.args[0] if harmless else source


def _fuse(graph_module: GraphModule, pack: Node) -> bool:
    """Give the readers of `pack` bits of what makes its map, if that can make any; `pack` has no reader then."""
    source, threshold = pack.args
    assert isinstance(source, Node) and isinstance(threshold, Node)
    producer = producer_of(source)
    if producer is None:
        return False
    bits = item_of(producer.node, 1)
    if constant(threshold).dim() > 1 and len(constant(threshold)) > MOST_PLANES:
        return False
    if bits is None:
        _set_threshold(graph_module, producer, constant(threshold), str(threshold.target))
        with graph_module.graph.inserting_after(source):
            pack.replace_all_uses_with(graph_module.graph.call_function(operator.getitem, (producer.node, 1)))
        return True
    readers = [_reader_of_planes(user, of) for of in (bits, pack) for user in of.users]
    if not all(readers):
        return False
    channels = next(reader.geometry.in_channels for reader in readers if reader is not None)
    made, wanted = (_rows(value, channels) for value in (producer.value("next_threshold"), constant(threshold)))
    first = _place_of(wanted, made)
    if first is None:
        first, made = len(made), torch.cat([made, wanted])
        if len(made) > MOST_PLANES:
            return False
        _set_threshold(graph_module, producer, made, f"{threshold.target}_planes")
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


def _set_threshold(graph_module: GraphModule, producer: Fused, value: Tensor, name: str) -> None:
    """A constant of the producer's own: the pack's may have other readers, and lies behind the producer."""
    producer.update(next_threshold=add_constant(graph_module, name.replace(".", "_"), value, producer.node))
