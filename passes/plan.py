"""Plan: one Decision per convolution, by rules on the dataflow graph and never by model names."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable

import networkx as nx
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from binarize.errors import UnsupportedModelError, UsageError
from binarize.nn.binary_conv import BinaryConv2d, conv_geometry
from binarize.passes.base import PassContext, PassResult
from binarize.passes.graph_tools import (
    MUL_TARGETS,
    calls_function,
    calls_module,
    dataflow,
    is_gate_function,
    module_of,
    shape_of,
)
from binarize.report import Decision

CONV_FUNCTIONS = {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


class Plan:
    """Fills `context.decisions`; changes no graph."""

    name = "plan"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        calls = conv_calls(graph_module)
        if not calls:
            raise UnsupportedModelError("the model has no convolution, so there is nothing to binarize")
        check_weights(graph_module)
        kept_by_user = match_globs(context.config.surgery.keep, calls)
        flow = dataflow(graph_module.graph)
        for path, nodes in calls.items():
            conv = graph_module.get_submodule(path)
            assert isinstance(conv, _ConvNd)
            rule, reason = _rule(conv, path, nodes, flow, context, kept_by_user)
            context.decisions[path] = _decision(path, conv, nodes, rule, reason)
        for node in graph_module.graph.nodes:
            if calls_function(node, CONV_FUNCTIONS):
                context.decisions[node.name] = _functional_decision(node)
        return PassResult(graph_module, 0)


def conv_calls(graph_module: GraphModule) -> dict[str, list[Node]]:
    """Every convolution's path with its call sites, in order of execution."""
    calls: dict[str, list[Node]] = {}
    for node in graph_module.graph.nodes:
        if calls_module(node, _ConvNd):
            if calls_module(node, BinaryConv2d):
                raise UsageError(
                    "the model is already binarized",
                    layer=str(node.target),
                    hint="apply() takes the float model",
                )
            calls.setdefault(str(node.target), []).append(node)
    return calls


def check_weights(module: nn.Module) -> None:
    """Raise UnsupportedModelError if a parameter or buffer holds NaN or infinity."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    bad = [name for name, t in tensors if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UnsupportedModelError(
            f"the weights hold NaN or infinity{more}",
            layer=bad[0],
            hint="load a checkpoint from before it diverged",
        )


def match_globs(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """The `names` that match a pattern; a pattern without a match is a UsageError with near names."""
    names = list(names)
    matched: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise UsageError(
                f"{pattern!r} matches no convolution",
                hint=f"near names: {', '.join(near)}; `binarize inspect` lists all",
            )
        matched.update(hits)
    return matched


def _rule(
    conv: _ConvNd,
    path: str,
    nodes: list[Node],
    flow: nx.DiGraph,
    context: PassContext,
    kept_by_user: set[str],
) -> tuple[str, str]:
    """The first rule that applies, and its reason in words."""
    if path in kept_by_user:
        return "keep", "kept by the user"
    if isinstance(conv, _ConvTransposeNd):
        return "transposed", "transposed conv: no binary form"
    if not isinstance(conv, nn.Conv2d):
        return "dimension", "not a 2-d conv"
    if type(conv)._conv_forward is not nn.Conv2d._conv_forward or type(conv).forward is not nn.Conv2d.forward:
        return "subclass", f"{type(conv).__name__} computes its own convolution"
    if conv.padding_mode != "zeros":
        return "padding", f"padding mode {conv.padding_mode!r}: only zero padding has a packed form"
    if all(_is_gate(node) for node in nodes):
        return "gate", "gate: its map is 1x1 or it feeds a sigmoid that scales other features"
    if not any(_has_conv(nx.ancestors(flow, node)) for node in nodes) and not context.config.surgery.binarize_stem:
        return "stem", "first conv on the image"
    if not any(_has_weights(nx.descendants(flow, node)) for node in nodes):
        return "classifier", "last conv: it gives the output"
    return "eligible", "eligible"


def _has_conv(nodes: set[Node]) -> bool:
    return any(calls_module(node, _ConvNd) or calls_function(node, CONV_FUNCTIONS) for node in nodes)


def _has_weights(nodes: set[Node]) -> bool:
    return _has_conv(nodes) or any(calls_module(n, nn.Linear) or calls_function(n, {F.linear}) for n in nodes)


def _is_gate(node: Node) -> bool:
    """Squeeze-excite and its relatives: a conv on a 1x1 map, or one whose output becomes a factor."""
    shape = shape_of(node.all_input_nodes[0])
    if shape is not None and len(shape) == 4 and shape[2:] == (1, 1):
        return True
    gates = [user for user in node.users if is_gate_function(user)]
    return any(calls_function(user, MUL_TARGETS) for gate in gates for user in gate.users)


def _decision(path: str, conv: _ConvNd, nodes: list[Node], rule: str, reason: str) -> Decision:
    sizes = [shape[2:] for node in nodes if (shape := shape_of(node))]
    per_position = conv.in_channels // conv.groups * math.prod(conv.kernel_size) * conv.out_channels
    kind = conv_geometry(conv).kind if isinstance(conv, nn.Conv2d) else type(conv).__name__
    return Decision(
        layer=path,
        action="binarize" if rule == "eligible" else "keep",
        rule=rule,
        reason=reason,
        kind=kind,
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel=tuple(conv.kernel_size),
        stride=tuple(conv.stride),
        dilation=tuple(conv.dilation),
        groups=conv.groups,
        output_size=tuple(sizes[0]) if sizes else (),
        macs=sum(math.prod(size) for size in sizes) * per_position,
        weight_bytes=conv.weight.numel() * 4,
    )


def _functional_decision(node: Node) -> Decision:
    """A conv called as a function has no module whose place a binary one could take."""
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    shape = (shape_of(weight) if isinstance(weight, Node) else None) or ()
    size = (shape_of(node) or ())[2:]
    return Decision(
        layer=node.name,
        action="keep",
        rule="functional",
        reason="called as a function, so its weight belongs to no conv module",
        kind="functional",
        in_channels=shape[1] if shape else 0,
        out_channels=shape[0] if shape else 0,
        kernel=tuple(shape[2:]),
        stride=(),
        dilation=(),
        groups=1,
        output_size=tuple(size),
        macs=math.prod(size) * math.prod(shape) if shape else 0,
        weight_bytes=4 * math.prod(shape) if shape else 0,
    )


def binarized_convs(graph_module: GraphModule, context: PassContext) -> list[tuple[Node, str]]:
    """Call sites and paths of the convs that the plan binarizes."""
    return [
        (node, str(node.target))
        for node in graph_module.graph.nodes
        if node.op == "call_module"
        and (decision := context.decisions.get(str(node.target))) is not None
        and decision.binarized
        and isinstance(module_of(node), nn.Conv2d)
    ]
