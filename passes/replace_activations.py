"""Replace activations whose output meets a sign, because a ReLU there leaves nothing to binarize.

`ReLU -> ... -> binary conv` becomes `RPReLU -> ... -> binary conv`; activations that only float layers see stay
(METHODS of the field: ReActNet section 4.2; a sign after a ReLU has a constant input on half of its range). Those that
give no features stay, too: a clip that is a gate, as in a hard swish written by hand (`x * relu6(x + 3) / 6`), and what
keeps a divisor or a root away from 0. Without its bounds the one would be a square, and the other infinite.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.conv import _ConvNd

from binarize.config import SurgeryConfig
from binarize.nn import RPReLU
from binarize.passes.base import PassContext, PassResult
from binarize.passes.graph_tools import (
    DIV_TARGETS,
    MUL_TARGETS,
    add_module,
    calls_function,
    calls_module,
    insert_module_call,
    is_activation,
    is_weighted,
    module_of,
    moves_channels,
    path_of,
    shape_of,
    walk_forward,
)


class ReplaceActivations:
    name = "replace_activations"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        surgery = context.config.surgery
        if surgery.activation == "keep":
            return PassResult(graph_module, 0)
        changed = 0
        for node in list(graph_module.graph.nodes):
            shape = shape_of(node)
            if not is_activation(node) or shape is None or len(shape) < 3 or not _meets_sign(node, context):
                continue
            if _lowest(node) > 0 or _divides(node) or (_highest(node) < math.inf and _is_factor(node)):
                continue
            if surgery.activation == "hardtanh" and calls_module(node, nn.Hardtanh):
                continue
            _replace(graph_module, node, _replacement(shape[1], surgery))
            changed += 1
        return PassResult(graph_module, changed)


def _meets_sign(node: Node, context: PassContext) -> bool:
    """Whether `node`'s value reaches a binarized conv through nothing that has weights or is an activation."""

    def passes_on(user: Node) -> bool:
        stops = calls_module(user, (_ConvNd, nn.Linear, RPReLU)) or is_activation(user) or moves_channels(user)
        return not stops

    reached = list(walk_forward(node, passes_on))
    if context.recording is not None and any(user.op == "output" for user in reached):
        outside = (user for run in context.recording.of(node) for user in walk_forward(run, passes_on))
        reached += [user for user in outside if calls_module(user, _ConvNd)]
    decisions = (context.decisions.get(path_of(user)) for user in reached if user.op == "call_module")
    return any(decision is not None and decision.binarized for decision in decisions)


def _lowest(node: Node) -> float:
    """The least value that a clip gives; minus infinity for other activations, and where it is not a number."""
    return _bound(node, "min", 1, -math.inf)


def _highest(node: Node) -> float:
    """The greatest, likewise."""
    return 6.0 if calls_function(node, {F.relu6}) else _bound(node, "max", 2, math.inf)


def _bound(node: Node, end: str, position: int, otherwise: float) -> float:
    module = module_of(node)
    if isinstance(module, nn.Hardtanh):  # and ReLU6
        return float(getattr(module, f"{end}_val"))
    if not calls_function(node, _CLIPS):
        return otherwise
    named = [node.kwargs[name] for name in (end, f"{end}_val") if name in node.kwargs]
    value = (named or [*node.args[position : position + 1], None])[0]
    if value is None and calls_function(node, {F.hardtanh}):
        return math.copysign(1.0, otherwise)
    return float(value) if isinstance(value, int | float) else otherwise


_CLIPS = {torch.clamp, "clamp", "clamp_", F.hardtanh}


def _divides(node: Node) -> bool:
    """Whether something is divided by what becomes of `node`'s value."""
    divisors = (user.args[1] for user in _elementwise(node) if calls_function(user, DIV_TARGETS) and len(user.args) > 1)
    reached = {node, *_elementwise(node)}
    return any(divisor in reached for divisor in divisors)


def _is_factor(node: Node) -> bool:
    """Whether what becomes of `node`'s value multiplies a map that does not depend on it."""
    dependent = {node, *walk_forward(node, lambda user: True)}
    for user in _elementwise(node):
        others = [other for other in user.all_input_nodes if other not in dependent and other.op != "get_attr"]
        if calls_function(user, MUL_TARGETS) and any(len(shape_of(other) or ()) > 2 for other in others):
            return True
    return False


def _elementwise(node: Node) -> list[Node]:
    """Everything that `node`'s value reaches through nothing that has weights or is an activation."""
    return list(walk_forward(node, lambda user: not (is_weighted(user) or is_activation(user))))


def _replacement(channels: int, surgery: SurgeryConfig) -> nn.Module | None:
    """What `surgery.activation` names; None for nothing."""
    if surgery.activation == "none":
        return None
    if surgery.activation == "hardtanh":
        return nn.Hardtanh()
    return RPReLU(channels, slope=surgery.activation_slope, shifts=surgery.activation == "rprelu")


def _replace(graph_module: GraphModule, node: Node, module: nn.Module | None) -> None:
    """Put `module` at `node`'s call site only: activation modules are often shared between sites."""
    value = source = node.all_input_nodes[0]
    if module is not None:
        like = next(graph_module.parameters())
        base = str(node.target) if node.op == "call_module" else node.name
        path = add_module(graph_module, f"{base}_{type(module).__name__.lower()}", module.to(like.device, like.dtype))
        value = insert_module_call(graph_module, node, path, source)
    node.replace_all_uses_with(value)
    graph_module.graph.erase_node(node)
    if node.op == "call_module" and all(other.target != node.target for other in graph_module.graph.nodes):
        graph_module.delete_submodule(str(node.target))
