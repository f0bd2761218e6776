"""Plan: one Decision per convolution, by the rules of `rules` on the dataflow graph."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.nn.modules.conv import _ConvNd

from binarize.errors import UnsupportedModelError
from binarize.passes.base import PassContext
from binarize.passes.graph_tools import CONV_FUNCTIONS, calls_function, calls_module, module_of, path_of, shape_of
from binarize.passes.rules import (
    DYNAMIC,
    ELIGIBLE,
    FUNCTIONAL,
    PLANNED,
    RULE_PREFIX,
    RULES,
    SELECTABLE,
    UNUSED,
    GraphFacts,
    Rule,
    Site,
    check_patterns,
)
from binarize.report import Decision


def plan(model: nn.Module, graph: Graph, context: PassContext) -> None:
    """Fill `context.decisions` for every convolution of `model`, of which `graph` is the recorded dataflow."""
    surgery = context.config.surgery
    facts = GraphFacts(graph, surgery, context.probe)
    sites = find_sites(facts)
    convs = {path: module for path, module in model.named_modules() if isinstance(module, _ConvNd)}
    if not sites:
        called = " that the example inputs reach" if convs else ""
        raise UnsupportedModelError(
            f"the model has no convolution{called}, so there is nothing to binarize",
            hint="--linear all (surgery.linear) takes its linear layers" if not convs else "pass example_inputs",
        )
    check_weights(model)
    check_patterns((*surgery.keep, *surgery.only), sites)
    for site in sites:
        context.decisions[site.path] = decide(site)
    for node in graph.nodes:
        if calls_function(node, CONV_FUNCTIONS):
            context.decisions[node.name] = _functional_decision(node, facts)
    for path, conv in convs.items():
        if path not in context.decisions:
            context.decisions[path] = _decision(Site(path, conv, (), facts), UNUSED)
    if surgery.linear == "keep":
        context.float_linear_macs = _linear_macs_on_maps(facts)


def check_strict(decisions: Iterable[Decision]) -> None:
    """Raise UnsupportedModelError if a conv stays float for a reason that nobody planned (`surgery.strict`)."""
    skipped = [d for d in decisions if not d.binarized and d.rule not in PLANNED]
    if skipped:
        first = skipped[0]
        more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        accept = f"accept it with --keep {RULE_PREFIX}{first.rule}, or " if first.rule in SELECTABLE else ""
        raise UnsupportedModelError(
            f"it would stay float{more}: {first.reason}", layer=first.layer, hint=f"{accept}leave out --strict"
        )


def find_sites(facts: GraphFacts) -> list[Site]:
    """Every convolution and every linear layer that `surgery.linear` counts as one, in order of execution.

    A linear layer whose class computes something else does not count.
    """
    kinds: tuple[type[nn.Module], ...] = (_ConvNd,) if facts.surgery.linear == "keep" else (_ConvNd, nn.Linear)
    calls: dict[str, list[Node]] = {}
    for node in facts.graph.nodes:
        if calls_module(node, kinds):
            calls.setdefault(path_of(node), []).append(node)
    sites = (Site(path, _module(nodes[0]), tuple(nodes), facts) for path, nodes in calls.items())
    return [site for site in sites if not site.is_linear or _counts(site)]


def _counts(linear: Site) -> bool:
    plain = type(linear.module).forward is nn.Linear.forward
    return plain and (linear.facts.surgery.linear == "all" or linear.all_calls(on_map))


def on_map(linear: Node) -> bool:
    """Whether a linear layer reads maps with their channels last, `[N, H, W, C]` or more: then it is a 1x1 conv."""
    return len(shape_of(linear.all_input_nodes[0]) or ()) >= 4


def _module(node: Node) -> nn.Module:
    module = module_of(node)
    assert module is not None
    return module


def check_weights(module: nn.Module) -> None:
    """Raise UnsupportedModelError if a parameter or buffer holds NaN or infinity."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    bad = [name for name, t in tensors if t.is_floating_point() and not t.is_meta and not torch.isfinite(t).all()]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UnsupportedModelError(
            f"the weights hold NaN or infinity{more}",
            layer=bad[0],
            hint="load a checkpoint from before it diverged",
        )


def decide(site: Site) -> Decision:
    """The first rule that applies decides."""
    return _decision(site, next((rule for rule in RULES if rule.applies(site)), None))


def _decision(site: Site, rule: Rule | None) -> Decision:
    block = site.block
    inputs, outputs = site.channels
    module = site.module
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    sizes = [shape_of(call) or () for call in site.calls]
    sizes = [size[1:-1] if site.is_linear else size[2:] for size in sizes]
    return Decision(
        layer=site.path,
        action="binarize" if rule is None else "keep",
        rule=ELIGIBLE if rule is None else rule.name,
        reason=ELIGIBLE if rule is None else rule.reason,
        kind=site.kind,
        in_channels=inputs,
        out_channels=outputs,
        kernel=tuple(getattr(module, "kernel_size", (1, 1))),
        stride=tuple(getattr(module, "stride", (1, 1))),
        dilation=tuple(getattr(module, "dilation", (1, 1))),
        groups=getattr(module, "groups", 1),
        output_size=tuple(sizes[0]) if sizes else (),
        macs=sum(_macs(site, call) for call in site.calls),
        weight_bytes=weight.numel() * 4,
        block=block.path if block else "",
        block_form=block.form if block else "none",
    )


def _linear_macs_on_maps(facts: GraphFacts) -> int:
    """Multiply-accumulates of the linear layers that `surgery.linear = "spatial"` would count as convs."""
    counted = GraphFacts(facts.graph, replace(facts.surgery, linear="spatial"))
    return sum(_macs(site, call) for site in find_sites(counted) if site.is_linear for call in site.calls)


def _macs(site: Site, call: Node) -> int:
    """Multiply-accumulates of a call for one example."""
    values = shape_of(call.all_input_nodes[0] if site.kind == "transposed" else call) or (0,)
    weight = site.module.weight
    assert isinstance(weight, torch.Tensor)
    return math.prod(values) // site.facts.batch * (weight.numel() // weight.shape[0])


def _functional_decision(node: Node, facts: GraphFacts) -> Decision:
    """A conv called as a function has no module whose place a binary one could take."""
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    fixed = isinstance(weight, Node) and weight.op == "get_attr"
    rule = FUNCTIONAL if fixed else DYNAMIC
    shape = (shape_of(weight) if isinstance(weight, Node) else None) or ()
    values = shape_of(node) or (0, 0)
    return Decision(
        layer=node.name,
        action="keep",
        rule=rule.name,
        reason=rule.reason,
        kind="functional",
        in_channels=shape[1] if shape else 0,
        out_channels=shape[0] if shape else 0,
        kernel=tuple(shape[2:]),
        stride=(),
        dilation=(),
        groups=1,
        output_size=tuple(values[2:]),
        macs=math.prod(values) // facts.batch * math.prod(shape[1:]) if shape else 0,
        weight_bytes=4 * math.prod(shape) if shape else 0,
    )


def binarized_convs(graph_module: GraphModule, context: PassContext) -> list[tuple[Node, str]]:
    """Call sites and paths of the convs that the plan binarizes."""
    return [
        (node, path_of(node))
        for node in graph_module.graph.nodes
        if node.op == "call_module"
        and (decision := context.decisions.get(path_of(node))) is not None
        and decision.binarized
        and isinstance(module_of(node), _ConvNd)
    ]
