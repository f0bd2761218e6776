"""Batch norms, activations, residual sums and gates that no conv took become `activate`, the epilogue without a conv.

Each starts as a neutral `activate`, into which the steps of `fuse_epilogue` pull the node and what follows it.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.fuse_epilogue import ATEN, fuse_epilogue, is_gate, norm_of, rprelu_of
from binarize.passes.layout_rules import is_map, rank_of, shape_of
from binarize.passes.lower_tools import (
    ACTIVATE,
    TO_NCHW,
    TO_NHWC,
    Fused,
    add_constant,
    fake_value,
    permute,
    set_value_like,
)


class LowerActivations:
    name = "lower_activations"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        changed = 0
        for node in list(graph_module.graph.nodes):
            if not node._erased and node.meta.get("channels_last") and fits_activate(node):
                _lower(graph_module, node)
                changed += 1
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, changed)


def fits_activate(node: Node) -> bool:
    """Whether `node` is a step that a neutral `activate` takes in."""
    maps = [a for a in node.args if isinstance(a, Node) and is_map(a)]
    if not maps or not all(rank_of(a) == 4 and fake_value(a).dtype.is_floating_point for a in maps):
        return False
    if norm_of(node) is not None or rprelu_of(node) is not None:
        return True
    if len(maps) != 2 or node.kwargs:
        return False
    if node.target is ATEN.add.Tensor:
        return maps[0] is not maps[1] and shape_of(maps[0]) == shape_of(maps[1])
    return node.target is ATEN.mul.Tensor and any(is_gate(factor, node) for factor in maps)


def _lower(graph_module: GraphModule, node: Node) -> None:
    """Put a neutral `activate` before `node` and let it take over."""
    source = next(a for a in node.args if is_map(a) and not (node.target is ATEN.mul.Tensor and is_gate(a, node)))
    assert isinstance(source, Node)
    y = neutral_activate(graph_module, permute(graph_module, source, TO_NHWC, node), node)
    node.update_arg(node.args.index(source), permute(graph_module, y, TO_NCHW, node))
    activate = y.args[0]
    assert isinstance(activate, Node)
    steps = fuse_epilogue(graph_module, Fused(activate))
    assert steps > 0, f"{node} cannot be an activation"


def neutral_activate(graph_module: GraphModule, source: Node, before: Node) -> Node:
    """The floats of an `activate` that changes nothing of the NHWC map `source`, inserted before `before`."""
    absent, zero, one = torch.zeros(1, 1, 1, 1), torch.zeros(1), torch.ones(1)

    def new(suffix: str, value: torch.Tensor) -> Node:
        return add_constant(graph_module, f"{before.name}_{suffix}", value, before)

    first = [new("gate", absent + 1), new("scale", one), new("bias", zero), new("residual", absent)]
    last = [new("slope", one), new("shift", zero), new("next_threshold", zero)]
    with graph_module.graph.inserting_before(before):
        activate = graph_module.graph.call_function(ACTIVATE, (source, *first, *last, shape_of(source)[3]))
        y = graph_module.graph.call_function(operator.getitem, (activate, 0))
    activate.meta["layer"] = before.name
    return set_value_like(y, source, lambda v: v)
