"""Let the operator that makes a map also pack it for the conv that reads it: the bits cost nothing in its epilogue.

A map read by several convs with different thresholds keeps a `pack` for each but the first, and so does one that is
packed to several planes.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.choose_layout import CLIPS
from binarize.passes.lower_tools import PACK, constant, item_of, producer_of


class FusePacks:
    name = "fuse_packs"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        changed = 0
        seen: list[tuple[Node, torch.Tensor, Node]] = []
        for node in [n for n in graph_module.graph.nodes if n.target is PACK]:
            source, threshold = node.args
            assert isinstance(source, Node) and isinstance(threshold, Node)
            value = constant(threshold)
            source = _before_clip(source, value)
            node.update_arg(0, source)
            same = next((b for s, t, b in seen if s is source and torch.equal(t, value)), None)
            bits = same or _bits_of_producer(graph_module, source, threshold)
            if bits is not None:
                node.replace_all_uses_with(bits)
                graph_module.graph.erase_node(node)
                changed += 1
            seen.append((source, value, bits or node))
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, changed)


def _before_clip(source: Node, threshold: torch.Tensor) -> Node:
    """What a hardtanh or clamp is applied to, where it moves no value across the threshold."""
    if source.target not in CLIPS or source.kwargs or not isinstance(source.args[0], Node):
        return source
    limits: tuple[Any, ...] = (*source.args[1:], *CLIPS[source.target][len(source.args) - 1 :])
    low, high = limits[:2]
    harmless = (low is None or torch.all(threshold >= low)) and (high is None or torch.all(threshold < high))
    return source.args[0] if harmless else source


def _bits_of_producer(graph_module: GraphModule, source: Node, threshold: Node) -> Node | None:
    """The packed output of what makes `source`, now with `threshold`; None if it is taken or makes none."""
    producer = producer_of(source)
    if producer is None or item_of(producer.node, 1) is not None or constant(threshold).dim() > 1:
        return None
    with graph_module.graph.inserting_before(producer.node):  # `threshold` may have other readers, before and behind
        own = graph_module.graph.get_attr(str(threshold.target))
    own.meta.update(threshold.meta)
    producer.update(next_threshold=own)
    with graph_module.graph.inserting_after(source):
        return graph_module.graph.call_function(operator.getitem, (producer.node, 1))
