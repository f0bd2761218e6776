"""Keep the float maps between packed operators as float16 (`export.stream`): half the memory traffic.

Arithmetic stays float32: our operators widen what they read and round what they write, once. Operators that only move
values stay between them; everything else gets float32 back. What comes from a float layer is rounded by an `activate`.
`meta["stream"]` marks the nodes whose floats are rounded.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.fuse_epilogue import ATEN
from binarize.passes.layout_rules import MOVES, is_map
from binarize.passes.lower_activations import neutral_activate
from binarize.passes.lower_tools import ARGUMENTS, GATE, PACK, POOL, Fused, add_constant, set_value_like


class NarrowStream:
    name = "narrow_stream"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        if context.config.export.stream == "float32":
            return PassResult(graph_module, 0)
        narrowed: set[Node] = set()
        copies: dict[Node, Node] = {}
        for node in list(graph_module.graph.nodes):
            if node.target in ARGUMENTS:
                _narrow_fused(graph_module, Fused(node), narrowed, copies)
                node.meta["stream"] = torch.float16
            elif _stays(node, narrowed):
                narrowed.add(node)
                if node.target in MOVES:
                    for operand in [i for i in node.all_input_nodes if is_map(i) and i not in narrowed]:
                        node.replace_input_with(operand, _narrow(graph_module, operand, node, copies))
            elif node.target not in (PACK, GATE) and not _is_bits(node):
                for operand in [i for i in node.all_input_nodes if i in narrowed]:
                    node.replace_input_with(operand, _widen(operand, node))
        for node in narrowed:
            node.meta["stream"] = torch.float16
        return PassResult(graph_module, len(narrowed))


def _is_bits(node: Node) -> bool:
    source = node.args[0] if node.args else None
    return node.target is operator.getitem and isinstance(source, Node) and source.target in ARGUMENTS


def _stays(node: Node, narrowed: set[Node]) -> bool:
    """Whether `node`'s value is a float16 map."""
    if _is_bits(node):
        return bool(node.args[1] == 0)
    return node.target in MOVES | {POOL} and any(i in narrowed for i in node.all_input_nodes)


def _narrow_fused(graph_module: GraphModule, fused: Fused, narrowed: set[Node], copies: dict[Node, Node]) -> None:
    for name in ("link", "residual"):
        if not fused.has(name):
            continue
        if fused.absent(name):
            neutral = fused.value(name).half()
            fused.update(**{name: add_constant(graph_module, f"{fused.node.name}_{name}", neutral, fused.node)})
        elif fused[name] not in narrowed:
            fused.update(**{name: _narrow(graph_module, fused[name], fused.node, copies)})
    if fused.has("gate") and fused["gate"] in narrowed:
        fused.update(gate=_widen(fused["gate"], fused.node))


def _narrow(graph_module: GraphModule, operand: Node, before: Node, copies: dict[Node, Node]) -> Node:
    """`operand` as float16: the one copy of it that there is, made before its first reader."""
    if operand in copies:
        return copies[operand]
    y = copies[operand] = neutral_activate(graph_module, operand, before)
    activate = y.args[0]
    assert isinstance(activate, Node)
    neutral = add_constant(graph_module, f"{y.name}_residual", torch.zeros(1, 1, 1, 1).half(), activate)
    Fused(activate).update(residual=neutral)
    activate.meta["stream"] = y.meta["stream"] = torch.float16
    return y


def _widen(operand: Node, before: Node) -> Node:
    with before.graph.inserting_before(before):
        wide = before.graph.call_function(ATEN._to_copy.default, (operand,), {"dtype": torch.float32})
    return set_value_like(wide, operand, lambda v: v)
