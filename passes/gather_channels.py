"""A channel shuffle, with the concatenation before it and the split behind it, is one pass over the pixels.

ONNX has a shuffle as a reshape, a transposition of axes of a few elements and another reshape, which takes the runtime
several times as long as copying the map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.layout_rules import ATEN, CHANNELS, SPLITS, joins_channels, rank_of, shape_of
from binarize.passes.lower_tools import GATHER_CHANNELS, add_constant, fake_value, set_value_like, stream_of


class GatherChannels:
    name = "gather_channels"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        changed = 0
        for node in list(graph_module.graph.nodes):
            shuffled = _shuffle(node)
            if shuffled is None:
                continue
            source, order = shuffled
            for part, channels in _parts(node, order):
                _gather(graph_module, source, part, channels)
            changed += 1
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, changed)


def _shuffle(node: Node) -> tuple[Node, Tensor] | None:
    """`(map, its channels in the order that `node` has them)` if `node` reshapes a transposition of groups."""
    turned: Any = node.args[0] if node.target is ATEN.reshape.default else None
    while isinstance(turned, Node) and turned.target is ATEN.clone.default:  # `contiguous()`
        turned = turned.args[0]
    if not isinstance(turned, Node) or not _swaps_last_axes(turned):
        return None
    grouped: Any = turned.args[0]
    source = grouped.args[0] if grouped.target is ATEN.reshape.default else None
    if not isinstance(source, Node) or rank_of(source) != 4 or rank_of(grouped) != 5 or rank_of(node) != 4:
        return None
    (*pixels, channels), (*before, groups, per_group), (*behind, same) = map(shape_of, (source, grouped, node))
    numbers = all(isinstance(extent, int) for extent in (channels, groups, per_group, same))
    if not numbers or channels != same or fake_value(source).dtype != torch.float32:
        return None
    if not list(map(str, pixels)) == list(map(str, before)) == list(map(str, behind)):
        return None
    return source, torch.arange(channels).view(groups, per_group).T.flatten()


def _swaps_last_axes(node: Node) -> bool:
    if rank_of(node) != 5:
        return False
    args: Any = node.args
    if node.target is ATEN.transpose.int:
        return {axis % 5 for axis in args[1:3]} == {3, 4}
    return node.target is ATEN.permute.default and [axis % 5 for axis in args[1]] == [0, 1, 2, 4, 3]


def _parts(node: Node, order: Tensor) -> list[tuple[Node, Tensor]]:
    """What reads `node`'s channels: the items of its splits, if it is only split, else `node` itself."""
    if not all(user.target in SPLITS and user.args[2:] in ((CHANNELS,), (-1,)) for user in node.users):
        return [(node, order)]
    splits = [(split, order.split(split.args[1])) for split in node.users]  # type: ignore[no-untyped-call]
    return [(item, parts[item.args[1]]) for split, parts in splits for item in split.users]  # type: ignore[index]


def _gather(graph_module: GraphModule, source: Node, part: Node, channels: Tensor) -> None:
    """Give the readers of `part` a map of those channels of `source`, or of the two maps that it joins."""
    a, *more = _joined(source)
    stream = stream_of(part)
    wanted = add_constant(graph_module, f"{part.name}_channels", channels, part)
    if not more:
        more = [add_constant(graph_module, f"{part.name}_b", torch.zeros(1, 1, 1, 1, dtype=stream), part)]
    with graph_module.graph.inserting_before(part):
        arguments = (a, *more, wanted, shape_of(a)[CHANNELS])
        gathered = graph_module.graph.call_function(GATHER_CHANNELS, arguments)
    set_value_like(gathered, part, lambda v: v)
    gathered.meta["stream"] = stream
    part.replace_all_uses_with(gathered)


def _joined(source: Node) -> list[Node]:
    """The two maps that `source` joins, or `source`."""
    maps: list[Node] = list(source.args[0]) if joins_channels(source) else []  # type: ignore[arg-type]
    alike = all(rank_of(n) == 4 and stream_of(n) == stream_of(source) for n in maps)
    return maps if len(maps) == 2 and alike else [source]
