"""Pull what follows a packed conv into it: batch norm, Elastic Link, residual, activation.

Unfused, each of these costs more than the convolution. One step takes one consumer; steps repeat until none fits.
The fused value's `origin` names the original node whose value it now computes, for the proof of equality.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from binarize.nn.ops import geometry_from_ints
from binarize.passes.base import PassContext, PassResult
from binarize.passes.lower_tools import (
    OPS,
    TO_NCHW,
    TO_NHWC,
    PackedConv,
    add_constant,
    constant,
    fake_value,
    is_permute,
    item_of,
    packed_convs,
    permute,
)

ATEN = torch.ops.aten
BATCH_NORMS = {
    ATEN._native_batch_norm_legit_no_training.default,
    ATEN.batch_norm.default,
    ATEN.cudnn_batch_norm.default,
}
Step = Callable[[GraphModule, PackedConv, Node, Node], Node | None]
"""`(graph, conv, its NCHW value, that value's only user) -> the node whose value the conv now computes, or None`."""


class FuseEpilogue:
    name = "fuse_epilogue"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        fused = 0
        for conv in packed_convs(graph_module):
            while _fuse_one(graph_module, conv):
                fused += 1
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, fused)


def _fuse_one(graph_module: GraphModule, conv: PackedConv) -> bool:
    y = item_of(conv.node, 0)
    if y is None or len(y.users) != 1 or not is_permute(value := next(iter(y.users)), TO_NCHW):
        return False
    if len(value.users) != 1 or conv.activated:
        return False
    user = next(iter(value.users))
    for step in (_fold_batch_norm, _absorb_link, _absorb_residual, _absorb_activation):
        replaced = step(graph_module, conv, value, user)
        if replaced is not None:
            conv.node.meta["origin"] = replaced.name
            _take_place_of(replaced, user, (conv.node, y, value))
            return True
    return False


def _take_place_of(replaced: Node, user: Node, chain: tuple[Node, Node, Node]) -> None:
    """Move the conv and its reads to where `user` stood (all inputs exist there); they now give `replaced`'s value."""
    for node in chain:
        user.prepend(node)
    replaced.replace_all_uses_with(chain[-1])
    for node in (replaced, user):
        if not node._erased:
            node.graph.erase_node(node)


def _fold_batch_norm(graph_module: GraphModule, conv: PackedConv, value: Node, user: Node) -> Node | None:
    """`BN(t) = t * g/sigma + (b - mean * g/sigma)`: folds into scale, bias and gamma while no residual is in."""
    if user.target not in BATCH_NORMS or not conv.absent("residual"):
        return None
    parameters = [constant(n) if isinstance(n, Node) else None for n in user.args[1:5]]
    weight, bias, mean, variance = parameters
    assert mean is not None and variance is not None
    epsilon = next(float(a) for a in reversed(user.args) if isinstance(a, float))
    factor = torch.rsqrt(variance.double() + epsilon) * (1 if weight is None else weight.double())
    offset = (0 if bias is None else bias.double()) - mean.double() * factor
    _set(graph_module, conv, "scale", conv.value("scale").double() * factor)
    _set(graph_module, conv, "bias", conv.value("bias").double() * factor + offset)
    if not conv.absent("link"):
        _set(graph_module, conv, "gamma", conv.value("gamma").double() * factor)
    if user.target is ATEN._native_batch_norm_legit_no_training.default:
        return _only_output(user)
    return user


def _only_output(norm: Node) -> Node:
    """The first output of a batch norm that gives three; drops the reads of the others."""
    for other in [u for u in norm.users if u.args[1] != 0]:
        norm.graph.erase_node(other)
    first = next(u for u in norm.users if u.target is operator.getitem)
    return first


def _absorb_link(graph_module: GraphModule, conv: PackedConv, value: Node, user: Node) -> Node | None:
    """`value + elastic_link(x)` where the link has the conv's own geometry."""
    other = _other_operand(user, value)
    if other is None or other.target is not OPS.elastic_link.default or not conv.absent("link"):
        return None
    source, gamma, geometry = other.args
    if geometry_from_ints(list(geometry)) != conv.geometry or not conv.absent("residual"):  # type: ignore[arg-type]
        return None
    assert isinstance(source, Node) and isinstance(gamma, Node)
    conv.update(link=permute(graph_module, source, TO_NHWC, user))
    _set(graph_module, conv, "gamma", constant(gamma))
    return user


def _absorb_residual(graph_module: GraphModule, conv: PackedConv, value: Node, user: Node) -> Node | None:
    """`value + other` for any other map of the same shape."""
    other = _other_operand(user, value)
    if other is None or not conv.absent("residual") or fake_value(other) is None:
        return None
    if other is value or tuple(fake_value(other).shape) != tuple(fake_value(user).shape):
        return None
    conv.update(residual=permute(graph_module, other, TO_NHWC, user))
    return user


def _absorb_activation(graph_module: GraphModule, conv: PackedConv, value: Node, user: Node) -> Node | None:
    """RPReLU, ReLU and PReLU; RPReLU's first shift goes into the bias, before all else is added to it."""
    if user.target is OPS.rprelu.default:
        shift_in, slope, shift_out = (constant(n) for n in user.args[1:4])  # type: ignore[arg-type]
    elif user.target is ATEN.relu.default:
        shift_in, slope, shift_out = torch.zeros(1), torch.zeros(1), torch.zeros(1)
    elif user.target in (ATEN.prelu.default, ATEN._prelu_kernel.default):
        weight = constant(user.args[1]).flatten()  # type: ignore[arg-type]
        shift_in, slope, shift_out = torch.zeros(1), weight, torch.zeros(1)
    else:
        return None
    _set(graph_module, conv, "bias", conv.value("bias").double() - shift_in.double())
    _set(graph_module, conv, "slope", slope)
    _set(graph_module, conv, "shift", shift_out)
    return user


def _other_operand(user: Node, value: Node) -> Node | None:
    """What `user` adds to `value`, if it is a plain addition of two tensors."""
    if user.target is not ATEN.add.Tensor or user.kwargs.get("alpha", 1) != 1:
        return None
    left, right = user.args[:2]
    other = right if left is value else left
    return other if isinstance(other, Node) else None


def _set(graph_module: GraphModule, conv: PackedConv, name: str, value: Tensor) -> None:
    node = add_constant(graph_module, f"{conv.node.meta['layer']}_{name}", value.float(), conv.node)
    conv.update(**{name: node})
