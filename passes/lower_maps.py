"""Operators that the layout choice put among the packed ones are written channels-last (`layout_rules`)."""

from __future__ import annotations

import operator
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from binarize.passes.base import PassContext, PassResult
from binarize.passes.layout_rules import (
    SPLITS,
    Previous,
    channels_first,
    channels_last,
    is_map,
    rank_of,
    rule_for,
)
from binarize.passes.lower_tools import POOL, add_constant, permute, set_value_like, take_origin, tensor_of


class LowerMaps:
    name = "lower_maps"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        nodes = [n for n in graph_module.graph.nodes if n.meta.get("channels_last") and rule_for(n) is not None]
        for node in nodes:
            _rewrite(graph_module, node)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, len(nodes))


def _rewrite(graph_module: GraphModule, node: Node) -> None:
    rule = rule_for(node)
    assert rule is not None
    operand = _broadcast_operand if rule.broadcasts else _operand
    result = operand(graph_module, node.all_input_nodes[0], node)
    for target, args, kwargs in rule.rewrite(node):
        args = _replace(args, Previous, result)
        args = map_arg(args, lambda a: operand(graph_module, a, node))
        with graph_module.graph.inserting_before(node):
            result = graph_module.graph.call_function(target, args, kwargs)
        if target is POOL:
            take_origin(result, node)
    if node.target in SPLITS:
        for item in list(node.users):
            with graph_module.graph.inserting_before(item):
                own = graph_module.graph.call_function(operator.getitem, (result, item.args[1]))
            _put(graph_module, own, item)
    else:
        _put(graph_module, result, node)


def _put(graph_module: GraphModule, result: Node, node: Node) -> None:
    """Let `result`, channels-last where it is a map, stand for `node`."""
    rank = rank_of(node)
    if rank >= 4:
        set_value_like(result, node, lambda v: v.permute(channels_last(rank)))
        result = permute(graph_module, result, channels_first(rank), node)
    else:
        set_value_like(result, node, lambda v: v)
    node.replace_all_uses_with(result)


def _operand(graph_module: GraphModule, operand: Node, before: Node) -> Node:
    """`operand` channels-last; what has no layout stays."""
    return permute(graph_module, operand, channels_last(rank_of(operand)), before) if is_map(operand) else operand


def _broadcast_operand(graph_module: GraphModule, operand: Node, before: Node) -> Node:
    """`operand` channels-last, a constant by the axes that it is broadcast along."""
    value = tensor_of(operand)
    if value is None or value.dim() == 0:
        return _operand(graph_module, operand, before)
    rank = rank_of(before)
    whole = value.reshape([1] * (rank - value.dim()) + list(value.shape))
    return add_constant(graph_module, f"{before.name}_constant", whole.permute(channels_last(rank)), before)


def _replace(arguments: Any, old: Any, new: Any) -> Any:
    if isinstance(arguments, list | tuple):
        return type(arguments)(_replace(argument, old, new) for argument in arguments)
    return new if arguments is old else arguments
