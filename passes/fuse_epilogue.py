"""Pull what follows a packed conv or an activation into it: factors, batch norm, Elastic Link, residual, RPReLU.

Unfused, each of these costs more than the convolution. One step takes one consumer; steps repeat until none fits.
The fused value's `origin` names the original node whose value it now computes, for the proof of equality.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.layout_rules import is_fixed
from binarize.passes.lower_tools import (
    ARGUMENTS,
    OPS,
    TO_NCHW,
    TO_NHWC,
    Fused,
    add_constant,
    constant,
    drop_origin,
    fake_value,
    is_permute,
    item_of,
    permute,
    producer_of,
    set_constant,
    take_origin,
    tensor_of,
)

ATEN = torch.ops.aten
BATCH_NORMS = {
    ATEN._native_batch_norm_legit_no_training.default,
    ATEN.batch_norm.default,
    ATEN.cudnn_batch_norm.default,
}
ACTIVATIONS = {
    OPS.rprelu.default,
    ATEN.relu.default,
    ATEN.leaky_relu.default,
    ATEN.prelu.default,
    ATEN._prelu_kernel.default,
}
Step = Callable[[GraphModule, Fused, Node, Node], Node | None]
"""`(graph, fused, its NCHW value, that value's only user) -> the node whose value it now computes, or None`."""


class FuseEpilogue:
    name = "fuse_epilogue"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        nodes = [node for node in graph_module.graph.nodes if node.target in ARGUMENTS]
        changed = sum(fuse_epilogue(graph_module, Fused(node)) for node in nodes)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, changed)


def fuse_epilogue(graph_module: GraphModule, fused: Fused) -> int:
    """Pull into `fused` what follows it as far as it fits; returns how many steps did."""
    steps = 0
    while _fuse_one(graph_module, fused):
        steps += 1
    return steps


def _fuse_one(graph_module: GraphModule, fused: Fused) -> bool:
    y = item_of(fused.node, 0)
    if y is None or len(y.users) != 1 or not is_permute(value := next(iter(y.users)), TO_NCHW):
        return False
    if len(value.users) != 1 or fused.activated:
        return False
    user = next(iter(value.users))
    if not _keeps_shape(value, user):
        return False
    for step in _STEPS:
        replaced = step(graph_module, fused, value, user)
        if replaced is not None:
            take_origin(fused.node, replaced)
            _take_place_of(replaced, user, (fused.node, y, value))
            return True
    return False


def _keeps_shape(value: Node, user: Node) -> bool:
    """Whether `user` has as many numbers as `value`: one that is broadcast has no place for what meets it there."""
    before, behind = fake_value(value), fake_value(user)
    first = behind[0] if isinstance(behind, tuple | list) else behind
    return before is None or first is None or tuple(before.shape) == tuple(first.shape)


def _take_place_of(replaced: Node, user: Node, chain: tuple[Node, Node, Node]) -> None:
    """Move the fused node and its reads to where `user` stood (all inputs exist there), to give `replaced`'s value."""
    for node in chain:
        user.prepend(node)
    replaced.replace_all_uses_with(chain[-1])
    for node in (replaced, user):
        if not node._erased:
            node.graph.erase_node(node)


def _absorb_gate(graph_module: GraphModule, fused: Fused, value: Node, user: Node) -> Node | None:
    """`value * gate` with one factor per image and channel: squeeze-excite, Real-to-Binary's gate."""
    gate = _other_operand(user, value, ATEN.mul.Tensor)
    if gate is None or not fused.absent("gate") or not _takes_factors(fused) or not is_gate(gate, user):
        return None
    fused.update(gate=permute(graph_module, gate, TO_NHWC, user))
    return user


def _absorb_factor(graph_module: GraphModule, fused: Fused, value: Node, user: Node) -> Node | None:
    """`value * factor` with one factor per pixel, of each image (XNOR-Net's K) or of all (a spatial scale)."""
    factor = _other_operand(user, value, ATEN.mul.Tensor)
    if factor is None or not fused.has("factor") or not _takes_factors(fused):
        return None
    map_size = fake_value(user).shape[2:] if fake_value(user) is not None else ()
    pixels = tensor_of(factor)
    if pixels is not None:
        one_number, of_all_channels = pixels.numel() == 1, math.prod(pixels.shape[:-2]) == 1
        if len(map_size) != 2 or one_number or not of_all_channels or not is_fixed(user):
            return None  # one number goes into the scale; a factor of a map of any size has no size to be stored in
        _multiply_factor(graph_module, fused, pixels, tuple(map_size), user)
        return user
    shape: tuple[Any, ...] = tuple(fake_value(factor).shape) if fake_value(factor) is not None else ()
    if len(shape) != 4 or shape[1] != 1 or tuple(shape[2:]) != tuple(map_size) or not fused.absent("factor"):
        return None
    fused.update(factor=permute(graph_module, factor, TO_NHWC, user))
    return user


def _multiply_factor(
    graph_module: GraphModule, fused: Fused, pixels: Tensor, map_size: tuple[int, ...], user: Node
) -> None:
    """The constant `pixels`, broadcastable to `map_size`, goes into the factor that is there."""
    whole = pixels.reshape(1, *pixels.shape[-2:], 1) if pixels.dim() > 1 else pixels.reshape(1, 1, -1, 1)
    known = tensor_of(fused["factor"])
    if known is not None:
        set_constant(graph_module, fused, "factor", (known * whole).expand(1, *map_size, 1))
    else:
        name = add_constant(graph_module, f"{fused.node.meta['layer']}_factor", whole.expand(1, *map_size, 1), user)
        with graph_module.graph.inserting_before(user):
            fused.update(factor=graph_module.graph.call_function(ATEN.mul.Tensor, (fused["factor"], name)))


def _absorb_constant(graph_module: GraphModule, fused: Fused, value: Node, user: Node) -> Node | None:
    """`value + constant` per channel: a conv's own bias behind its factors."""
    other = _other_operand(user, value)
    added = None if other is None else _per_channel(other, user)
    if added is None:
        return None
    set_constant(graph_module, fused, "bias", fused.value("bias").double() + added.double())
    return user


def _per_channel(operand: Node, user: Node) -> Tensor | None:
    """The constant `[O, 1, 1]` as `[O]`, one number as `[1]`."""
    value = tensor_of(operand)
    if value is None or fake_value(user) is None:
        return None
    if value.numel() != 1 and (value.dim() < 3 or value.numel() != value.shape[-3]):
        return None
    return value.flatten() if value.numel() in (1, int(fake_value(user).shape[1])) else None


def is_gate(factor: Any, product: Node) -> bool:
    """Whether `factor` has a value per image and channel of the map `product`."""
    if not isinstance(factor, Node) or factor.op == "get_attr":
        return False
    mine, full = fake_value(factor), fake_value(product)
    if mine is None or full is None or mine.dim() != 4 or full.dim() != 4:
        return False
    if tuple(mine.shape[2:]) != (1, 1) or tuple(full.shape[2:]) == (1, 1):
        return False
    others = [other for other in product.all_input_nodes if other is not factor]
    if not any(getattr(fake_value(other), "shape", full.shape) == full.shape for other in others):
        return False  # an outer product, a pixel's factor times a channel's
    return tuple(mine.shape[:2]) == tuple(full.shape[:2])


def _takes_factors(fused: Fused) -> bool:
    """Whether `fused` is so far a product, into which factors may go; those of an activation come before its scale."""
    plain = torch.all(fused.value("bias") == 0) and (fused.has("geometry") or torch.all(fused.value("scale") == 1))
    return bool(plain) and fused.absent("link") and fused.absent("residual")


def _fold_batch_norm(graph_module: GraphModule, fused: Fused, value: Node, user: Node) -> Node | None:
    """`BN(t) = t * g/sigma + (b - mean * g/sigma)`: folds into scale, bias and gamma."""
    if user.target not in BATCH_NORMS or not _is_linear(fused):
        return None
    norm = norm_of(user)
    if norm is None:
        return None
    _multiply(graph_module, fused, *norm)
    if user.target is ATEN._native_batch_norm_legit_no_training.default:
        return _only_output(user)
    return user


def _fold_scale(graph_module: GraphModule, fused: Fused, value: Node, user: Node) -> Node | None:
    """`value * constant` per channel."""
    other = _other_operand(user, value, ATEN.mul.Tensor)
    factor = None if other is None else _per_channel(other, user)
    if factor is None or not _is_linear(fused):
        return None
    _multiply(graph_module, fused, factor.double(), torch.zeros(1))
    return user


def _is_linear(fused: Fused) -> bool:
    """Whether a factor can still go into every part of the sum."""
    if fused.absent("residual"):
        return True
    own = _own_residual(fused)
    return own is not None and _is_linear(own)


def _own_residual(fused: Fused) -> Fused | None:
    """The conv that makes `fused`'s residual for it alone, such as CI-Net's corrections: a part of the same sum."""
    node: Any = fused["residual"]
    for dims in (TO_NHWC, TO_NCHW):
        if not is_permute(node, dims) or len(node.users) != 1:
            return None
        node = node.args[0]
    source = producer_of(node)
    if source is None or len(node.users) != 1 or not source.has("geometry") or source.activated:
        return None
    return source if item_of(source.node, 1) is None else None


def _multiply(graph_module: GraphModule, fused: Fused, factor: Tensor, offset: Tensor) -> None:
    """`fused * factor + offset`; a residual of its own then has no twin in the original graph any more."""
    set_constant(graph_module, fused, "scale", fused.value("scale").double() * factor)
    set_constant(graph_module, fused, "bias", fused.value("bias").double() * factor + offset)
    if not fused.absent("link"):
        set_constant(graph_module, fused, "gamma", fused.value("gamma").double() * factor)
    if not fused.absent("residual"):
        source = _own_residual(fused)
        assert source is not None
        _multiply(graph_module, source, factor, torch.zeros(1))
        drop_origin(source.node)


def _only_output(norm: Node) -> Node:
    """The first output of a batch norm that gives three; drops the reads of the others."""
    for other in [u for u in norm.users if u.args[1] != 0]:
        norm.graph.erase_node(other)
    first = next(u for u in norm.users if u.target is operator.getitem)
    return first


def _absorb_link(graph_module: GraphModule, fused: Fused, value: Node, user: Node) -> Node | None:
    """`value + elastic_link(x)` where the link has the conv's own geometry."""
    other = _other_operand(user, value)
    if other is None or other.target is not OPS.elastic_link.default or not fused.has("link"):
        return None
    source, gamma, geometry = other.args
    if list(geometry) != list(fused["geometry"]) or not fused.absent("link") or not _is_linear(fused):  # type: ignore[arg-type]
        return None
    assert isinstance(source, Node) and isinstance(gamma, Node)
    fused.update(link=permute(graph_module, source, TO_NHWC, user))
    set_constant(graph_module, fused, "gamma", constant(gamma))
    return user


def _absorb_residual(graph_module: GraphModule, fused: Fused, value: Node, user: Node) -> Node | None:
    """`value + other` for any other map of the same shape; a residual of its own can take another one."""
    other = _other_operand(user, value)
    if other is None or fake_value(other) is None or other is value:
        return None
    if tuple(fake_value(other).shape) != tuple(fake_value(user).shape):
        return None
    host = fused if fused.absent("residual") else _own_residual(fused)
    if host is None or not host.absent("residual"):
        return None
    residual = permute(graph_module, other, TO_NHWC, user)
    if host is not fused:
        own: Any = fused["residual"]
        for node in (host.node, own.args[0].args[0], own.args[0], own):  # to where `other` exists
            user.prepend(node)
        drop_origin(host.node)
    host.update(residual=residual)
    return user


def _absorb_activation(graph_module: GraphModule, fused: Fused, value: Node, user: Node) -> Node | None:
    """RPReLU, ReLU, leaky ReLU and PReLU; RPReLU's first shift goes into the bias, before all else is added to it."""
    activation = rprelu_of(user)
    if activation is None:
        return None
    shift_in, slope, shift_out = activation
    set_constant(graph_module, fused, "bias", fused.value("bias").double() - shift_in.double())
    set_constant(graph_module, fused, "slope", slope)
    set_constant(graph_module, fused, "shift", shift_out)
    return user


_STEPS: tuple[Step, ...] = (
    _absorb_gate,
    _absorb_factor,
    _absorb_constant,
    _fold_scale,
    _fold_batch_norm,
    _absorb_link,
    _absorb_residual,
    _absorb_activation,
)


def _other_operand(user: Node, value: Node, target: Any = ATEN.add.Tensor) -> Node | None:
    """What `user` adds to `value` (or does with it by `target`), if that is a plain operation on two float tensors."""
    if user.target is not target or user.kwargs.get("alpha", 1) != 1:
        return None
    left, right = user.args[:2]
    other = right if left is value else left
    if not isinstance(other, Node):
        return None
    kind = getattr(fake_value(other), "dtype", torch.float32)
    return other if kind.is_floating_point else None


def norm_of(node: Node) -> tuple[Tensor, Tensor] | None:
    """Factor and offset per channel of a batch norm; None if `node` is none, or one whose numbers are computed."""
    if node.target not in BATCH_NORMS:
        return None
    defaults = (torch.ones(1), torch.zeros(1), None, None)
    operands: Any = zip(node.args[1:5], defaults, strict=True)
    weight, bias, mean, variance = (default if n is None else tensor_of(n) for n, default in operands)
    if weight is None or bias is None or mean is None or variance is None:
        return None
    epsilon = next(float(a) for a in reversed(node.args) if isinstance(a, float))
    factor = torch.rsqrt(variance.double() + epsilon) * weight.double()
    return factor, bias.double() - mean.double() * factor


def rprelu_of(node: Node) -> tuple[Tensor, Tensor, Tensor] | None:
    """First shift, slope and second shift of an activation, each `[C]` or of one element.

    None if `node` is not one of `ACTIVATIONS`, or one whose numbers are computed.
    """
    if node.target not in ACTIVATIONS:
        return None
    shift_in: Tensor | None = torch.zeros(1)
    slope: Tensor | None = torch.zeros(1)
    shift_out: Tensor | None = torch.zeros(1)
    operands: Any = node.args[1:]
    if node.target is OPS.rprelu.default:
        shift_in, slope, shift_out = map(tensor_of, operands)
    elif node.target is ATEN.leaky_relu.default:
        slope = torch.tensor([float(operands[0]) if operands else 0.01])
    elif node.target is not ATEN.relu.default:
        slope = tensor_of(operands[0])
    if shift_in is None or slope is None or shift_out is None:
        return None
    return shift_in, slope.flatten(), shift_out
