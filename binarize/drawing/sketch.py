"""From an fx graph to what a picture of it shows: boxes for layers, circles for joins, wires for values."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import networkx as nx
import torch
from torch import nn
from torch.fx import Graph, Node

from binarize.nn import ElasticLink
from binarize.nn.functional import to_map, to_rows
from binarize.passes.blocks import CAT_TARGETS
from binarize.passes.graph_tools import (
    ADD_TARGETS,
    MUL_TARGETS,
    NO_FLOW,
    calls_function,
    calls_module,
    dataflow,
    is_weighted,
    module_of,
    shape_of,
)
from binarize.report import Decision

Role = Literal["layer", "step", "join", "end"]
SKIPPED_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten)
SKIPPED_FUNCTIONS = {
    operator.getitem,
    torch.flatten,
    torch.permute,
    torch.transpose,
    to_map,
    to_rows,
    *("flatten", "permute", "transpose", "view", "reshape", "contiguous", "chunk", "unsqueeze", "squeeze"),
}
"""They move values without changing them, or, in eval mode, do nothing."""

NAMES = {
    "BatchNorm2d": "BN",
    "LayerNorm": "LN",
    "LayerNorm2d": "LN",
    "GroupNorm": "GN",
    "MaxPool2d": "max pool",
    "AvgPool2d": "avg pool",
    "AdaptiveAvgPool2d": "avg pool",
    "adaptive_avg_pool2d": "avg pool",
    "max_pool2d": "max pool",
    "avg_pool2d": "avg pool",
}


@dataclass(eq=False)
class Box:
    """Something that is drawn.

    Attributes:
        key: unique in its sketch; a layer's is its path, with the number of the call behind a second one.
        role: `layer` (has weights), `step` (has none), `join` (a circle) or `end` (input, output).
        text: lines of text.
        decision: about a layer.
    """

    key: str
    role: Role
    text: list[str]
    decision: Decision | None = None


@dataclass
class Sketch:
    """Boxes, and between them wires; `link` wires are Elastic Links."""

    flow: nx.DiGraph = field(default_factory=nx.DiGraph)

    @property
    def boxes(self) -> Iterable[Box]:
        return iter(self.flow)

    def wire(self, source: Box, target: Box, link: bool = False) -> None:
        """A wire; of two between the same boxes the one that is no link is kept."""
        if not link or not self.flow.has_edge(source, target):
            self.flow.add_edge(source, target, link=link)


def sketch(graphs: Iterable[tuple[str, Graph]], decisions: Mapping[str, Decision]) -> Sketch:
    """What to draw of `graphs`, each with the path of the module it stands for; runs of steps become one box."""
    made = Sketch()
    for path, graph in graphs:
        _add_graph(made, path, graph, decisions)
    _merge_steps(made)
    return made


def _add_graph(made: Sketch, prefix: str, graph: Graph, decisions: Mapping[str, Decision]) -> None:
    sources: dict[Node, list[tuple[Box, bool]]] = {}
    """Which boxes give a node's value, and whether through a link."""
    flow = dataflow(graph)
    calls: Counter[str] = Counter()
    for node in graph.nodes:
        inputs = [pair for source in flow.predecessors(node) for pair in sources.get(source, ())]
        if calls_function(node, NO_FLOW) or (node.op != "placeholder" and not inputs):
            continue
        if calls_module(node, ElasticLink):
            sources[node] = [(box, True) for box, _ in inputs]
        elif _is_skipped(node) or (calls_function(node, CAT_TARGETS) and len(inputs) == 1):
            sources[node] = inputs
        else:
            box = _box(node, len(inputs) > 1, decisions, prefix, calls)
            made.flow.add_node(box)
            sources[node] = [(box, False)]
            for source, link in inputs:
                made.wire(source, box, link)


def _is_skipped(node: Node) -> bool:
    in_eval_nothing = getattr(node.target, "__name__", "") in ("stochastic_depth", "dropout")
    return in_eval_nothing or calls_module(node, SKIPPED_MODULES) or calls_function(node, SKIPPED_FUNCTIONS)


def _box(node: Node, joins: bool, decisions: Mapping[str, Decision], prefix: str, calls: Counter[str]) -> Box:
    if node.op in ("placeholder", "output"):
        shape = "x".join(str(size) for size in (shape_of(node) or ())[1:])
        return Box(f"{prefix}:{node.name}", "end", ["input " + shape if node.op == "placeholder" else "output"])
    if is_weighted(node):
        path = node.meta.get("path", f"{prefix}.{node.target}".strip(".")) if node.op == "call_module" else node.name
        calls[path] += 1
        key = path if calls[path] == 1 else f"{path} (call {calls[path]})"
        decision = decisions.get(path)
        return Box(key, "layer", [key, _layer_facts(node, decision)], decision)
    key = f"{prefix}:{node.name}"
    if joins:
        for targets, sign in ((ADD_TARGETS, "+"), (MUL_TARGETS, "\u00d7"), (CAT_TARGETS, "cat")):
            if calls_function(node, targets):
                return Box(key, "join", [sign])
    return Box(key, "step", [_name(node)])


def _layer_facts(node: Node, decision: Decision | None) -> str:
    module = module_of(node)
    if decision is not None:
        stride = "x".join(str(s) for s in dict.fromkeys(decision.stride))
        suffix = "" if stride in ("1", "") else f" /{stride}"
        return f"{decision.kind} {decision.in_channels} \u2192 {decision.out_channels}{suffix}"
    if isinstance(module, nn.Linear):
        return f"linear {module.in_features} \u2192 {module.out_features}"
    return _name(node)


def _name(node: Node) -> str:
    module = module_of(node)
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
    return NAMES.get(name, name.strip("_"))


def _merge_steps(made: Sketch) -> None:
    """A step that alone reads a step joins it: `BN`, `ReLU` become `BN, ReLU`."""
    flow = made.flow
    for box in list(nx.topological_sort(flow)):
        before = list(flow.predecessors(box))
        if box.role != "step" or len(before) != 1 or before[0].role != "step" or flow.out_degree(before[0]) != 1:
            continue
        if flow.edges[before[0], box]["link"]:
            continue
        first = before[0]
        first.text = [", ".join([first.text[0], box.text[0]])]
        for after in list(flow.successors(box)):
            made.wire(first, after, flow.edges[box, after]["link"])
        flow.remove_node(box)
