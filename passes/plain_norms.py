"""Norms become torch's own: a norm with an activation in it is taken apart, a frozen one behind a binary conv thaws.

timm's `BatchNormAct2d` is a batch norm whose `forward` ends in an activation, which recipes must see to replace it.
Detectors' `FrozenBatchNorm2d` is a batch norm whose numbers are buffers; behind a binary conv these are the statistics
and the affine map of an output that is not there any more.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from binarize.nn.modules import evaluating
from binarize.passes.base import PassContext, PassResult
from binarize.passes.frozen_norms import is_frozen_batch_norm, thaw
from binarize.passes.graph_tools import insert_module_call, module_of, path_of, shape_of

_PLAIN: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


class PlainNorms:
    name = "plain_norms"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        changed = 0
        opened: dict[nn.Module, list[str]] = {}
        for node in list(graph_module.graph.nodes):
            module = module_of(node)
            if module is None:
                continue
            if _follows_binary_conv(node, context) and is_frozen_batch_norm(module):
                changed += thaw(module)
            if module not in opened and (chain := _chain(module, node)) is not None:
                opened[module] = chain
            if module in opened:
                _call_in_turn(graph_module, node, opened[module], context)
                changed += 1
        for module in opened:
            module.__class__ = _plain_class(module)
        return PassResult(graph_module, changed)


def _follows_binary_conv(node: Node, context: PassContext) -> bool:
    sources = node.all_input_nodes
    decision = context.decisions.get(path_of(sources[0])) if sources and sources[0].op == "call_module" else None
    return decision is not None and decision.binarized


def _plain_class(module: nn.Module) -> type[nn.Module]:
    return next(kind for kind in type(module).__mro__ if kind in _PLAIN)


def _chain(module: nn.Module, node: Node) -> list[str] | None:
    """Names of `module`'s children, if it is a plain norm and then these in turn; found by trying."""
    shape = shape_of(node.all_input_nodes[0]) if node.all_input_nodes else None
    children = list(module._modules)
    if not isinstance(module, _PLAIN) or type(module) in _PLAIN or not children or shape is None:
        return None
    if type(module).forward is _plain_class(module).forward:
        return None
    like = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), torch.zeros(1))
    x = torch.randn(shape, device=like.device, dtype=like.dtype)
    try:
        with torch.no_grad(), evaluating(module):
            expected, found = module(x.clone()), _in_turn(module, x)
    except Exception:
        return None
    same = expected.shape == found.shape and (x.is_meta or torch.allclose(expected, found, rtol=1e-4, atol=1e-5))
    return children if same else None


def _in_turn(module: nn.Module, x: Tensor) -> Tensor:
    value: Tensor = _plain_class(module).forward(module, x)  # type: ignore[attr-defined]
    for child in module.children():
        value = child(value)
    return value


def _call_in_turn(graph_module: GraphModule, norm: Node, children: list[str], context: PassContext) -> None:
    """Call the children behind the norm, as nodes of their own."""
    calls = [norm]
    for name in children:
        path = f"{norm.target}.{name}"
        if isinstance(graph_module.get_submodule(path), nn.Identity):
            continue
        calls.append(insert_module_call(graph_module, calls[-1], path, calls[-1]))
        calls[-1].meta["path"] = f"{path_of(norm)}.{name}"
    norm.replace_all_uses_with(calls[-1], delete_user_cb=lambda user: user not in calls)
    if context.recording is not None:
        for before, after in pairwise(calls):
            context.recording.goes_on(before, after)
