"""A permutation right behind its inverse is nothing: inside a binary island maps stay NHWC.

One that only moves axes of extent 1, as around a 1x1 map, only gives another shape.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.layout_rules import is_fixed
from binarize.passes.lower_tools import PERMUTE, fake_value

_RESHAPE = torch.ops.aten.reshape.default


class CancelTransposes:
    name = "cancel_transposes"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        cancelled = 0
        for node in [n for n in graph_module.graph.nodes if n.target is PERMUTE]:
            inner = _undone_by(*node.args)
            if inner is not None:
                node.replace_all_uses_with(inner)
                cancelled += 1
        graph_module.graph.eliminate_dead_code()
        cancelled += sum(_make_reshape(n) for n in graph_module.graph.nodes if n.target is PERMUTE)
        for node in [n for n in graph_module.graph.nodes if n.target is _RESHAPE]:
            _skip_reshapes(node)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, cancelled)


def _undone_by(source: Node, dims: list[int]) -> Node | None:
    """What `source` permuted, if permuting it with `dims` gives that back."""
    if source.target is not PERMUTE:
        return None
    inner, before = source.args
    assert isinstance(inner, Node) and isinstance(before, list)
    return inner if [before[d] for d in dims] == list(range(len(dims))) else None


def _make_reshape(node: Node) -> bool:
    """Turn `node` into a reshape if all axes but the batch and one have the extent 1."""
    value = fake_value(node)
    if value is None or node.args[1][0] != 0 or not is_fixed(node) or sum(e != 1 for e in value.shape[1:]) > 1:  # type: ignore
        return False
    node.target, node.args = _RESHAPE, (node.args[0], [-1, *value.shape[1:]])
    return True


def _skip_reshapes(node: Node) -> None:
    """Let `node` read what the reshapes before it read."""
    source = node.args[0]
    while isinstance(source, Node) and source.target is _RESHAPE:
        source = source.args[0]
    assert isinstance(source, Node)
    node.update_arg(0, source)
