"""Replace activations whose output meets a sign, because a ReLU there leaves nothing to binarize.

`ReLU -> ... -> binary conv` becomes `RPReLU -> ... -> binary conv`; activations that only float layers see stay
(METHODS of the field: ReActNet section 4.2; a sign after a ReLU has a constant input on half of its range).
"""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.conv import _ConvNd

from binarize.config import SurgeryConfig
from binarize.nn import RPReLU
from binarize.passes.base import PassContext, PassResult
from binarize.passes.graph_tools import (
    add_module,
    calls_module,
    insert_module_call,
    is_activation,
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
