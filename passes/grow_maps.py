"""A map that grows by concatenation, as in a dense block, lies in one memory: each step only adds its own channels.

`cat(a, b)`, `cat(a, b, c)`, … would copy `a` once for each. Instead the parts are placed, one behind the other, in a
map as wide as the longest of these; who wants fewer of its channels reads the first ones. Maps of any size are left
alone: a runtime that does not know that two have one size gives each a memory of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.layout_rules import CHANNELS, is_fixed, joins_channels, rank_of, shape_of
from binarize.passes.lower_tools import ACTIVATE, PLACE, Fused, add_constant, set_value_like, stream_of


class GrowMaps:
    name = "grow_maps"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        changed = 0
        parts: dict[Node, list[Node]] = {}
        for node in graph_module.graph.nodes:
            if _joins_fixed_maps(node):
                parts[node] = _parts(node, parts)
        left = list(parts)
        while left:
            stages = _stages(left, parts)
            left = [cat for cat in left if cat not in stages]
            if len(stages) > 1:
                _grow(graph_module, stages, parts)
                changed += len(stages)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, changed)


def _joins_fixed_maps(node: Node) -> bool:
    return joins_channels(node) and all(rank_of(n) == 4 and is_fixed(n) for n in (node, *_operands(node)))


def _operands(cat: Node) -> list[Node]:
    return list(cat.args[0])  # type: ignore[arg-type]


def _parts(cat: Node, known: dict[Node, list[Node]]) -> list[Node]:
    """What `cat` joins; of an operand that is joined itself, what that joins."""
    apart = [known[n] if n in known and stream_of(n) == stream_of(cat) else [n] for n in _operands(cat)]
    return [part for parts in apart for part in parts]


def _stages(joins: list[Node], parts: dict[Node, list[Node]]) -> list[Node]:
    """The longest of `joins`, and those it goes on from whose readers can read the first channels of a wider map."""
    longest = max(joins, key=lambda cat: len(parts[cat]))
    stages = [
        cat for cat in joins if parts[cat] == parts[longest][: len(parts[cat])] and stream_of(cat) == stream_of(longest)
    ]
    while bad := [cat for cat in stages if cat is not longest and not _read_in_part(cat, stages)]:
        stages = [cat for cat in stages if cat not in bad]
    return stages


def _read_in_part(cat: Node, stages: list[Node]) -> bool:
    return all(user in stages or _reads_as_x(user, cat) for user in cat.users)


def _reads_as_x(user: Node, cat: Node) -> bool:
    return user.target is ACTIVATE and Fused(user)["x"] is cat and list(user.args).count(cat) == 1


def _grow(graph_module: GraphModule, stages: list[Node], parts: dict[Node, list[Node]]) -> None:
    """Place the parts before the first stage that has them."""
    longest = max(stages, key=lambda cat: len(parts[cat]))
    channels = shape_of(longest)[CHANNELS]
    neutral = torch.zeros(1, 1, 1, 1, dtype=stream_of(longest))
    first, wide = 0, add_constant(graph_module, f"{longest.name}_into", neutral, stages[0])
    grown: list[Node] = []
    for cat in stages:
        for part in parts[cat][len(grown) :]:
            with graph_module.graph.inserting_before(cat):
                arguments: tuple[Any, ...] = (part, wide, first, channels)
                wide = graph_module.graph.call_function(PLACE, arguments)
            set_value_like(wide, longest, lambda v: v)
            wide.meta["stream"] = stream_of(longest)
            first += shape_of(part)[CHANNELS]
            grown.append(wide)
        cat.replace_all_uses_with(grown[len(parts[cat]) - 1])
