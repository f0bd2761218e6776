"""A map that grows by concatenation, as in a dense block, lies in one memory: each step only adds its own channels.

`cat(a, b)`, `cat(a, b, c)`, … would copy `a` once for each. Instead the parts are placed, one behind the other, in a
map as wide as the longest of these; who wants fewer of its channels reads the first ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.layout_rules import ATEN, rank_of, shape_of
from binarize.passes.lower_tools import ACTIVATE, PLACE, Fused, add_constant, fake_value, set_value_like

CHANNELS = 3
"""Their axis in a channels-last map."""


class GrowMaps:
    name = "grow_maps"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        changed = 0
        left = [node for node in graph_module.graph.nodes if _joins_channels(node)]
        while left:
            longest = max(left, key=lambda cat: len(_parts(cat)))
            stages = [cat for cat in left if _is_stage(cat, longest)]
            left = [cat for cat in left if cat not in stages]
            if len(stages) > 1:
                _grow(graph_module, stages, longest)
                changed += len(stages)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, changed)


def _joins_channels(node: Node) -> bool:
    if node.target is not ATEN.cat.default or rank_of(node) != 4 or len(node.args) < 2:
        return False
    return node.args[1] in (CHANNELS, -1) and all(isinstance(shape_of(n)[CHANNELS], int) for n in (node, *_parts(node)))


def _parts(cat: Node) -> list[Node]:
    return list(cat.args[0])  # type: ignore[arg-type]


def _is_stage(cat: Node, longest: Node) -> bool:
    """Whether `longest` goes on where `cat` ends, and who reads `cat` can read the first channels of a wider map."""
    parts = _parts(cat)
    grows = parts == _parts(longest)[: len(parts)] and cat.meta.get("stream") == longest.meta.get("stream")
    return grows and (cat is longest or all(_reads_as_x(user, cat) for user in cat.users))


def _reads_as_x(user: Node, cat: Node) -> bool:
    return user.target is ACTIVATE and Fused(user)["x"] is cat and list(user.args).count(cat) == 1


def _grow(graph_module: GraphModule, stages: list[Node], longest: Node) -> None:
    """Place the parts before the first stage that has them."""
    channels = shape_of(longest)[CHANNELS]
    neutral = torch.zeros(1, 1, 1, 1, dtype=longest.meta.get("stream", torch.float32))
    first, wide = 0, add_constant(graph_module, f"{longest.name}_into", neutral, stages[0])
    grown: list[Node] = []
    for cat in stages:
        for part in _parts(cat)[len(grown) :]:
            with graph_module.graph.inserting_before(cat):
                arguments: tuple[Any, ...] = (part, wide, first, channels)
                wide = graph_module.graph.call_function(PLACE, arguments)
            set_value_like(wide, longest, lambda v: v)
            wide.meta["stream"] = longest.meta.get("stream", torch.float32)
            first += fake_value(part).shape[CHANNELS]
            grown.append(wide)
        cat.replace_all_uses_with(grown[len(_parts(cat)) - 1])
