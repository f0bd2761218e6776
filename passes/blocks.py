"""Which block a layer lies in: the smallest region between a fork and the addition or concatenation that joins it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx
import torch
from torch.fx import Graph, Node

from binarize.passes.graph_tools import ADD_TARGETS, calls_function, shape_of

CAT_TARGETS = {torch.cat, torch.concat, torch.concatenate}


@dataclass(frozen=True)
class Block:
    """A region with one fork and one join.

    Attributes:
        form: `identity` (an addition whose shortcut has no weights), `projection` (it has), or `concat`.
        path: the module around all its weighted layers.
        layers: the weighted nodes inside.
        shortcut: of these, those of a projection's shorter branch, if it has just one.
    """

    form: str
    path: str
    layers: frozenset[Node]
    shortcut: frozenset[Node]


def fork_of(flow: nx.DiGraph, joins: list[Node]) -> dict[Node, Node]:
    """For each of `joins` the last value that every path to it goes through, where there is one."""
    root = "root"
    rooted = flow.copy()
    # Features come from the inputs alone; a view's sizes and the training flag of a dropout have no origin either.
    rooted.add_node(root)
    rooted.add_edges_from((root, node) for node in flow if node.op == "placeholder")
    dominators = nx.immediate_dominators(rooted, root)
    forks = {join: dominators.get(join) for join in joins}
    return {join: fork for join, fork in forks.items() if isinstance(fork, Node)}


def enclosing_blocks(graph: Graph, flow: nx.DiGraph, weighted: set[Node]) -> dict[Node, Block]:
    """The smallest block of every node in `weighted` that lies in one."""
    joins = [node for node in graph.nodes if _is_join(node)]
    blocks: dict[Node, Block] = {}
    for join, fork in fork_of(flow, joins).items():
        block = _block(flow, weighted, fork, join)
        for layer in block.layers:
            if layer not in blocks or len(block.layers) < len(blocks[layer].layers):
                blocks[layer] = block
    return blocks


def _is_join(node: Node) -> bool:
    if calls_function(node, CAT_TARGETS):
        return len(node.all_input_nodes) > 1
    operands = node.all_input_nodes
    return calls_function(node, ADD_TARGETS) and len(operands) == 2 and shape_of(operands[0]) == shape_of(operands[1])


def _block(flow: nx.DiGraph, weighted: set[Node], fork: Node, join: Node) -> Block:
    inside = weighted & nx.descendants(flow, fork)
    layers = frozenset(inside & nx.ancestors(flow, join))
    path = _module_around(str(node.target) for node in layers if node.op == "call_module")
    if calls_function(join, CAT_TARGETS):
        return Block("concat", path, layers, frozenset())
    short, long = sorted((inside & ({end} | nx.ancestors(flow, end)) for end in join.all_input_nodes), key=len)
    form = "projection" if short else "identity"
    alone = len(short) == 1 < len(long) and not short & long
    return Block(form, path, layers, frozenset(short if alone else ()))


def _module_around(layers: Iterable[str]) -> str:
    """The innermost module that holds all `layers`, given by path; `""` is the whole model."""
    parts = [layer.split(".")[:-1] for layer in layers]
    common: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)
