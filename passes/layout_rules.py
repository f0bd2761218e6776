"""How each operator on feature maps is written channels-last.

A map of rank r is `[N, channels..., H, W]` (one channel axis, or two inside a channel shuffle) and channels-last
`[N, H, W, channels...]`. A rule says which nodes it fits and how to write such a node for channels-last operands.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from binarize.nn.functional import adaptive_mean
from binarize.passes.lower_tools import GATHER_CHANNELS, PLACE, POOL, constant, fake_value, tensor_of

ATEN = torch.ops.aten
CHANNELS = 3
"""Their axis in a channels-last map."""
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A target and its arguments; operands that are maps stand for their channels-last form."""


@dataclass(frozen=True)
class Rule:
    """A rewriting into channels-last.

    Attributes:
        fits: whether this very node can be written so.
        rewrite: the calls to make instead, in order; `Previous` stands for the result of the call before. An empty
            list means the operand itself.
        broadcasts: whether the node's constants meet the map's axes; others, such as indices, have no layout.
    """

    fits: Callable[[Node], bool]
    rewrite: Callable[[Node], list[Call]]
    broadcasts: bool = False


class Previous:
    """In a rewrite's arguments: the result of the call before."""


def channels_last(rank: int) -> list[int]:
    """The permutation from `[N, channels..., H, W]` to `[N, H, W, channels...]`."""
    return [0, rank - 2, rank - 1, *range(1, rank - 2)]


def channels_first(rank: int) -> list[int]:
    """Its inverse."""
    return [0, *range(3, rank), 1, 2]


def rank_of(node: Any) -> int:
    """The rank of `node`'s value; 0 if it is no tensor."""
    value = fake_value(node) if isinstance(node, Node) else None
    return value.dim() if isinstance(value, torch.Tensor) else 0


def is_map(node: Any) -> bool:
    """Whether `node`'s value has a layout: rank 4 or more, and no constant."""
    return rank_of(node) >= 4 and node.op != "get_attr"


def shape_of(node: Any) -> tuple[Any, ...]:
    return tuple(fake_value(node).shape)


def size_of(node: Node) -> int:
    """Elements per image, for the example input."""
    return math.prod(_for_example(extent) for extent in shape_of(node)[1:])


def _for_example(extent: Any) -> int:
    """What a symbolic extent is for the example input; asking it itself would add a guard."""
    value: Any = extent.node.hint if isinstance(extent, torch.SymInt) else extent
    return int(value)


def joins_channels(node: Node) -> bool:
    """Whether `node` concatenates channels-last maps along their channels."""
    return node.target is ATEN.cat.default and len(node.args) > 1 and node.args[1] in (CHANNELS, -1)


def is_fixed(node: Any) -> bool:
    """Whether the extents of `node`'s map are numbers; in a part of a model they may depend on the input."""
    return all(isinstance(extent, int) for extent in shape_of(node)[1:])


def same_extent(left: Any, right: Any) -> bool:
    """Equality of two extents, symbolic ones by their formula (asking them would add a guard)."""
    return str(left) == str(right)


def _moved(rank: int, axis: int) -> int:
    """Where `axis` of a map lies when channels are last."""
    return channels_last(rank).index(axis % rank)


# ------------------------------------------------------------------------------------------ elementwise


def _is_elementwise(node: Node) -> bool:
    rank = rank_of(node)
    tensors = [a for a in _flat(node.args) if isinstance(a, Node)]
    return rank >= 4 and all(
        (is_map(a) and rank_of(a) == rank) or (tensor_of(a) is not None and constant(a).dim() <= rank) for a in tensors
    )


def is_pointwise(target: Any) -> bool:
    """Whether the operator computes each element from the operands' elements at its place."""
    return torch.Tag.pointwise in getattr(target, "tags", ()) or target in _UNTAGGED


_UNTAGGED = {ATEN.hardswish.default}
"""Pointwise operators that torch does not call so."""


def _same_call(node: Node) -> list[Call]:
    return [(node.target, node.args, node.kwargs)]


def _flat(arguments: Any) -> list[Any]:
    if isinstance(arguments, list | tuple):
        return [leaf for argument in arguments for leaf in _flat(argument)]
    return [arguments]


# ------------------------------------------------------------------------------------------ axes


def _with_axis(position: int, default: int = 0) -> Rule:
    """An operator whose argument at `position` is an axis or a list of axes."""

    def rewrite(node: Node) -> list[Call]:
        arguments: list[Any] = list(node.args)
        arguments += [default] * (position + 1 - len(arguments))
        rank = _operand_rank(node)
        axes = arguments[position]
        several = isinstance(axes, list | tuple)
        arguments[position] = [_moved(rank, axis) for axis in axes] if several else _moved(rank, axes)
        return [(node.target, tuple(arguments), node.kwargs)]

    return Rule(_maps_of_one_rank, rewrite)


def _maps_of_one_rank(node: Node) -> bool:
    operands = [a for a in _flat(node.args) if isinstance(a, Node)]
    return all(is_map(a) for a in operands) and len({rank_of(a) for a in operands}) == 1


def _operand_rank(node: Node) -> int:
    return next(rank_of(a) for a in _flat(node.args) if isinstance(a, Node))


def _reduces_axes(node: Node) -> bool:
    """A mean, sum or maximum that keeps the axes it is taken over."""
    rank = rank_of(node.args[0])
    return rank >= 4 and rank_of(node) == rank and isinstance(_argument(node, 1, None), list | tuple)


_REDUCTION = Rule(_reduces_axes, _with_axis(1).rewrite)


def _moves_channels_only(node: Node) -> bool:
    """A transposition of channel axes among themselves."""
    rank = rank_of(node)
    args: Any = node.args
    if rank < 5:
        return False
    if node.target is ATEN.transpose.int:
        return all(1 <= axis % rank < rank - 2 for axis in args[1:3])
    dims = [d % rank for d in args[1]]
    return dims[0] == 0 and dims[-2:] == [rank - 2, rank - 1]


def _transpose(node: Node) -> list[Call]:
    rank = rank_of(node)
    args: Any = node.args
    if node.target is ATEN.transpose.int:
        first, second = (_moved(rank, axis) for axis in args[1:3])
        return [(node.target, (args[0], first, second), {})]
    dims = [d % rank for d in args[1]]
    return [(node.target, (args[0], [_moved(rank, dims[axis]) for axis in channels_last(rank)]), {})]


# ------------------------------------------------------------------------------------------ shapes


def _keeps_pixels(node: Node) -> bool:
    """A new shape that splits or joins channel axes only, or one between `[N, C, 1, 1]` and `[N, C]`."""
    if rank_of(node) == 0 or rank_of(node.args[0]) == 0:
        return False
    before, after = shape_of(node.args[0]), shape_of(node)
    if not same_extent(before[0], after[0]):
        return False
    if len(before) >= 4 and len(after) >= 4:
        return all(map(same_extent, before[-2:], after[-2:]))
    full, flat = (before, after) if len(before) > len(after) else (after, before)
    return len(full) == 4 and len(flat) == 2 and full[2:] == (1, 1)


def _reshape(node: Node) -> list[Call]:
    after = shape_of(node)
    args: Any = node.args
    extents = [-1, *after[1:]] if is_fixed(node) else list(args[1])
    if len(after) >= 4:
        extents = [extents[axis] for axis in channels_last(len(after))]
    return [(ATEN.reshape.default, (node.args[0], extents), {})]


# ------------------------------------------------------------------------------------------ pooling


@dataclass(frozen=True)
class _Pool:
    """The arguments of `pool2d` behind the map."""

    mode: str
    kernel: list[int]
    strides: list[int]
    pads: list[int]
    dilations: list[int]
    count_include_pad: bool = False

    def call(self, node: Node) -> Call:
        return POOL, (node.args[0], *(getattr(self, name) for name in self.__dataclass_fields__)), {}


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [int(v) for v in (values * 2)[:2]]


def _argument(node: Node, position: int, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else default


def _window_pool(node: Node) -> _Pool | None:
    """`max_pool2d` or `avg_pool2d`; the ceiling mode becomes padding at the end, which no average may count."""
    is_max = node.target is ATEN.max_pool2d.default
    kernel = _pair(node.args[1])
    strides = _pair(_argument(node, 2, None) or kernel)
    before = _pair(_argument(node, 3, 0))
    dilations = _pair(_argument(node, 4, 1)) if is_max else [1, 1]
    ceiling = bool(_argument(node, 5 if is_max else 4, False))
    counts_padding = not is_max and bool(_argument(node, 5, True)) and any(before)
    if not is_max and (_argument(node, 6, None) is not None or (ceiling and counts_padding)):
        return None
    if ceiling and not is_fixed(node.args[0]):
        return None
    after = []
    for axis, (size, result) in enumerate(zip(shape_of(node.args[0])[2:], shape_of(node)[2:], strict=True)):
        reach = (result - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1
        after.append(max(before[axis], reach - size - before[axis]) if ceiling else before[axis])
    return _Pool("max" if is_max else "average", kernel, strides, before + after, dilations, counts_padding)


def _adaptive_pool(node: Node) -> _Pool | None:
    """Adaptive average pooling whose windows all have one size."""
    if not is_fixed(node.args[0]):
        return None
    size, result = (shape_of(n)[2:] for n in (node.args[0], node))
    if any(whole % part for whole, part in zip(size, result, strict=True)):
        return None
    window = [whole // part for whole, part in zip(size, result, strict=True)]
    return _Pool("average", window, window, [0] * 4, [1, 1])


def _pools_any_map(node: Node) -> bool:
    return rank_of(node.args[0]) == 4 and not is_fixed(node.args[0])


def _adaptive_mean(node: Node) -> list[Call]:
    return [(adaptive_mean, (*node.args[:2], 1), {})]


def _takes_mean_over_map(node: Node) -> bool:
    dims = _argument(node, 1, None)
    if node.target is not ATEN.mean.dim or node.kwargs or not isinstance(dims, list | tuple):
        return False
    return rank_of(node.args[0]) == 4 and sorted(int(d) % 4 for d in dims) == [2, 3]


def _mean_over_map(node: Node) -> _Pool | None:
    if not _takes_mean_over_map(node) or not is_fixed(node.args[0]):
        return None
    size = list(shape_of(node.args[0])[2:])
    return _Pool("average", size, size, [0] * 4, [1, 1])


def _means_any_map(node: Node) -> bool:
    """A mean over whole maps, of any size."""
    whole = node.target is ATEN.adaptive_avg_pool2d.default and tuple(shape_of(node)[2:]) == (1, 1)
    return not is_fixed(node.args[0]) and (whole or _takes_mean_over_map(node))


def _pooling(describe: Callable[[Node], _Pool | None]) -> Rule:
    def fits(node: Node) -> bool:
        return rank_of(node.args[0]) == 4 and (describe(node) is not None or _means_any_map(node))

    def rewrite(node: Node) -> list[Call]:
        pool = describe(node)
        if pool is None:  # a window needs a size
            return [(ATEN.mean.dim, (node.args[0], [1, 2], rank_of(node) == 4), {})]
        nothing = pool.kernel == [1, 1] and pool.strides == [1, 1] and not any(pool.pads)
        calls = [] if nothing else [pool.call(node)]
        if rank_of(node) == 2:  # a mean that drops the axes
            pooled = Previous if calls else node.args[0]
            calls.append((ATEN.reshape.default, (pooled, [-1, shape_of(node)[1]]), {}))
        return calls

    return Rule(fits, rewrite)


# ------------------------------------------------------------------------------------------ the rest


def _is_zoom(node: Node) -> bool:
    """Nearest upsampling by whole factors; by 3.2, three pixels become nine, too, but not three each."""
    if not is_fixed(node.args[0]) or not is_fixed(node):
        return False
    before, after = shape_of(node.args[0])[2:], shape_of(node)[2:]
    given = _flat(node.args[2:])
    factors = given if len(given) == len(after) else [None] * len(after)
    sides = zip(before, after, factors, strict=True)
    return all(b % a == 0 and factor in (None, b // a) for a, b, factor in sides)


def _zoom(node: Node) -> list[Call]:
    channels, height, width = shape_of(node.args[0])[1:]
    rows, columns = shape_of(node)[2:]
    return [
        (ATEN.reshape.default, (node.args[0], [-1, height, 1, width, 1, channels]), {}),
        (ATEN.expand.default, (Previous, [-1, height, rows // height, width, columns // width, channels]), {}),
        (ATEN.clone.default, (Previous,), {}),
        (ATEN.reshape.default, (Previous, [-1, rows, columns, channels]), {}),
    ]


def _pad(node: Node) -> list[Call]:
    args: Any = node.args
    amounts = [*args[1], 0, 0, 0, 0, 0, 0][:6]
    columns, rows, channels = amounts[:2], amounts[2:4], amounts[4:6]
    return [(node.target, (args[0], [*channels, *columns, *rows], *args[2:]), node.kwargs)]


def _pads_map(node: Node) -> bool:
    args: Any = node.args
    constant_fill = not isinstance(_argument(node, 2, 0), str) or args[2] == "constant"
    return rank_of(args[0]) == 4 and len(args[1]) <= 6 and constant_fill


def _first(*rules: Rule) -> Rule:
    """The first of `rules` that fits."""
    return Rule(
        lambda node: any(rule.fits(node) for rule in rules),
        lambda node: next(rule for rule in rules if rule.fits(node)).rewrite(node),
    )


SPLITS = {ATEN.split.Tensor, ATEN.split_with_sizes.default}
"""Operators with a list of maps as result; their rule speaks for each of its items."""
_TRANSPOSES = (ATEN.transpose.int, ATEN.permute.default)
_POINTWISE = Rule(_is_elementwise, _same_call, broadcasts=True)
_RULES: dict[Any, Rule] = {
    ATEN.clone.default: _POINTWISE,
    ATEN.cat.default: _with_axis(1),
    ATEN.slice.Tensor: _with_axis(1),
    ATEN.index_select.default: Rule(lambda node: is_map(node.args[0]), _with_axis(1).rewrite),
    **dict.fromkeys(SPLITS, _with_axis(2)),
    **dict.fromkeys(_TRANSPOSES, Rule(_moves_channels_only, _transpose)),
    ATEN.reshape.default: Rule(_keeps_pixels, _reshape),
    **dict.fromkeys((ATEN.max_pool2d.default, ATEN.avg_pool2d.default), _pooling(_window_pool)),
    ATEN.adaptive_avg_pool2d.default: _first(_pooling(_adaptive_pool), Rule(_pools_any_map, _adaptive_mean)),
    ATEN.mean.dim: _first(_pooling(_mean_over_map), _REDUCTION),
    **dict.fromkeys((ATEN.sum.dim_IntList, ATEN.amax.default, ATEN.amin.default), _REDUCTION),
    **dict.fromkeys((ATEN.softmax.int, ATEN._softmax.default), _with_axis(1)),
    **dict.fromkeys((ATEN.upsample_nearest2d.vec, ATEN.upsample_nearest2d.default), Rule(_is_zoom, _zoom)),
    **dict.fromkeys((ATEN.constant_pad_nd.default, ATEN.pad.default), Rule(_pads_map, _pad)),
}

MOVES = {
    *SPLITS,
    *_TRANSPOSES,
    ATEN.reshape.default,
    ATEN.cat.default,
    ATEN.slice.Tensor,
    ATEN.index_select.default,
} | {
    ATEN.clone.default,
    ATEN.expand.default,
    operator.getitem,
    PLACE,
    GATHER_CHANNELS,
}
"""Operators that compute nothing."""


def rule_for(node: Node) -> Rule | None:
    """The rule that fits `node`."""
    if node.op != "call_function":
        return None
    rule = _RULES.get(node.target)
    if rule is None and is_pointwise(node.target):
        rule = _POINTWISE
    return rule if rule is not None and rule.fits(node) else None
