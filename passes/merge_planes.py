"""Two planes of bits against one weight are one convolution of twice the channels: TBN's ternary input.

`scale * (a conv W) + scale * (b conv W) = scale * ([a, b] conv [W, W])`, and the accumulators are exact integers.
Planes are joined by words. Where the channels are no multiple of 64, the words' unused bits count as channels too:
they are 0 in both planes, and the weight has 0 there for the first and 1 for the second, so the two cancel.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from binarize.nn.ops import WORD, geometry_to_ints
from binarize.passes.base import PassContext, PassResult
from binarize.passes.lower_tools import (
    PACK,
    PACKED_CONV,
    TO_NCHW,
    TO_NHWC,
    PackedConv,
    add_constant,
    is_item,
    is_permute,
)


class MergePlanes:
    name = "merge_planes"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        merged = 0
        for node in [n for n in graph_module.graph.nodes if n.target is torch.ops.aten.add.Tensor]:
            convs = [_conv_of(operand) for operand in node.args[:2]]
            if convs[0] is not None and convs[1] is not None and _are_planes(convs[0], convs[1]):
                _merge(graph_module, node, convs[0], convs[1])
                merged += 1
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, merged)


def _conv_of(value: object) -> PackedConv | None:
    """The packed conv whose floats, read by nobody else, `value` is."""
    if not isinstance(value, Node) or not is_permute(value, TO_NCHW) or len(value.users) != 1:
        return None
    item = value.args[0]
    if not isinstance(item, Node) or not is_item(item, 0) or len(item.users) != 1:
        return None
    conv = item.args[0]
    return PackedConv(conv) if isinstance(conv, Node) and conv.target is PACKED_CONV else None


def _are_planes(first: PackedConv, second: PackedConv) -> bool:
    return (
        first.node is not second.node
        and first.geometry == second.geometry
        and first.geometry.groups == 1
        and first["bits"].target is PACK
        and second["bits"].target is PACK
        and _packed_map(first) is _packed_map(second)
        and torch.equal(first.value("weight").view(torch.int64), second.value("weight").view(torch.int64))
        and torch.equal(first.value("scale"), second.value("scale"))
        and not any(torch.any(second.value(name) != 0) for name in ("bias", "shift"))
        and all(conv.absent(name) for conv in (first, second) for name in ("link", "residual"))
        and not first.activated
        and not second.activated
    )


def _packed_map(conv: PackedConv) -> Node:
    """The NCHW map whose bits `conv` reads."""
    nhwc = conv["bits"].args[0]
    return nhwc.args[0] if is_permute(nhwc, TO_NHWC) else nhwc


def _merge(graph_module: GraphModule, total: Node, first: PackedConv, second: PackedConv) -> None:
    """`first` takes both planes and stands where the sum was."""
    graph = graph_module.graph
    geometry = replace(first.geometry, in_channels=2 * WORD * first.value("weight").shape[-1])
    weight = first.value("weight").view(torch.int64)
    twice = torch.cat([weight, _with_unused_bits(weight, first.geometry.in_channels)], dim=-1).view(torch.uint64)
    with graph.inserting_before(total):
        bits = graph.call_function(torch.cat, ([first["bits"], second["bits"]], -1))
    first.update(
        bits=bits,
        weight=add_constant(graph_module, f"{first.node.meta['layer']}_packed_planes", twice, total),
        geometry=geometry_to_ints(geometry),
    )
    item = next(user for user in first.node.users if is_item(user, 0))
    value = next(iter(item.users))
    for node in (first.node, item, value):
        total.prepend(node)
    first.node.meta["origin"] = total.name
    total.replace_all_uses_with(value)
    graph.erase_node(total)


def _with_unused_bits(words: Tensor, channels: int) -> Tensor:
    """Packed int64 words `[..., Wc]` with the bits past the last channel set."""
    used = channels % WORD
    result = words.clone()
    if used:
        result[..., -1] |= -(1 << used)
    return result
