"""Our operators as torch custom ops, so that `torch.export` keeps each as one node.

The first three stand for the trainable layers; lowering turns them into the others, which are the operators of
the ONNX domain `ai.binarize` (docs/ops.md). Every op has a plain torch implementation, so both graphs run in
Python and can be compared with the trained module and with ONNX Runtime.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.nn import functional
from binarize.nn.geometry import ConvGeometry
from binarize.nn.sign import hard_sign

WORD = 64
"""Channels per packed word."""


class Terms(NamedTuple):
    """What a conv sums: a term for each base of the weight and, fastest, each plane of the input (docs/ops.md).

    Attributes:
        planes: of the input.
        bases: of the weight, stacked along its rows.
        ternary: whether a plane is the mean of two planes of bits.
        first_plane: of a packed map's planes of bits, the first that this conv reads.
    """

    planes: int = 1
    bases: int = 1
    ternary: int = 0
    first_plane: int = 0

    @property
    def bit_planes(self) -> int:
        """How many planes of bits the conv reads."""
        return self.planes * (2 if self.ternary else 1)


def geometry_from_ints(values: list[int]) -> ConvGeometry:
    """The inverse of `geometry_to_ints`."""
    n = (len(values) - 3) // 5
    rest = iter(values)
    take = [tuple(itertools.islice(rest, count)) for count in (2, n, n, 2 * n, n, 1)]
    return ConvGeometry(*take[0], *take[1:5], *take[5])  # type: ignore[arg-type]


def geometry_to_ints(g: ConvGeometry) -> list[int]:
    """`geometry` as the list of ints that a custom op's schema can carry."""
    return [g.in_channels, g.out_channels, *g.kernel, *g.stride, *g.pads, *g.dilation, g.groups]


def _channelwise(x: Tensor) -> Tensor:
    return x.view(1, -1, 1, 1)


def _convolve(signs: Tensor, weight: Tensor, g: ConvGeometry) -> Tensor:
    """Zero-padded convolution of +-1 and 0 values: exact integers in float32."""
    top, left, bottom, right = g.pads
    return F.conv2d(F.pad(signs, (left, right, top, bottom)), weight, None, g.stride, 0, g.dilation, g.groups)


def _sum_of_terms(
    signs: list[Tensor], weight: Tensor, scale: Tensor, bias: Tensor, g: ConvGeometry, terms: list[int]
) -> Tensor:
    """`bias + sum over terms of scale * conv(plane, base)` on NCHW.

    Args:
        signs: of each plane of bits.
        weight: signs `[bases * O, C/g, kh, kw]`.
        scale: `[O]`, or `[terms, O]`.
    """
    form = Terms(*terms)
    planes = [(a + b) / 2 for a, b in zip(signs[::2], signs[1::2], strict=True)] if form.ternary else signs
    scales = scale.expand(form.planes * form.bases, -1)
    total: Tensor | None = None
    for (base, plane), factor in zip(itertools.product(weight.chunk(form.bases), planes), scales, strict=True):
        term = _convolve(plane, base, g) * _channelwise(factor)
        total = term + _channelwise(bias) if total is None else total + term
    assert total is not None
    return total


@torch.library.custom_op("binarize::binary_conv2d", mutates_args=())
def binary_conv2d(
    x: Tensor, threshold: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, geometry: list[int], terms: list[int]
) -> Tensor:
    """`bias + sum over terms of scale * conv(sign(x - threshold), sign(weight))` on NCHW float32.

    Args:
        threshold: `[C]`, or `[planes of bits, C]`.
        weight: latent, `[bases * O, C/g, kh, kw]`.
        scale: `[O]`, or `[terms, O]`.
        terms: see `Terms`.
    """
    g = geometry_from_ints(geometry)
    signs = [hard_sign(x - _channelwise(t)) for t in threshold.view(-1, g.in_channels)]
    return _sum_of_terms(signs, hard_sign(weight), scale, bias, g, terms)


@binary_conv2d.register_fake
def _(
    x: Tensor, threshold: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, geometry: list[int], terms: list[int]
) -> Tensor:
    g = geometry_from_ints(geometry)
    return x.new_empty(x.shape[0], g.out_channels, *g.output_size(x.shape[2], x.shape[3]))


@torch.library.custom_op("binarize::elastic_link", mutates_args=())
def elastic_link(x: Tensor, gamma: Tensor, geometry: list[int]) -> Tensor:
    """`gamma * EL(x)` on NC... float32."""
    return functional.channelwise(gamma, x) * functional.elastic_link(x, geometry_from_ints(geometry))


@elastic_link.register_fake
def _(x: Tensor, gamma: Tensor, geometry: list[int]) -> Tensor:
    g = geometry_from_ints(geometry)
    return x.new_empty(x.shape[0], g.out_channels, *g.output_size(*x.shape[2:]))


@torch.library.custom_op("binarize::rprelu", mutates_args=())
def rprelu(x: Tensor, shift_in: Tensor, slope: Tensor, shift_out: Tensor) -> Tensor:
    """`prelu(x - shift_in, slope) + shift_out`, all per channel."""
    return functional.rprelu(x, shift_in, slope, shift_out)


@rprelu.register_fake
def _(x: Tensor, shift_in: Tensor, slope: Tensor, shift_out: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("binarize::pack", mutates_args=())
def pack(x: Tensor, threshold: Tensor) -> Tensor:
    """Bits of `x > threshold`: float32 or float16 `[N, H, W, C]` -> uint64 `[N, H, W, planes * ceil(C/64)]`.

    Args:
        threshold: `[C]` or `[1]`, or `[planes, C]`.
    """
    return _pack_planes(x.float(), threshold)


@pack.register_fake
def _(x: Tensor, threshold: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], _words(x.shape[-1], threshold), dtype=torch.uint64)


def _pack_planes(x: Tensor, threshold: Tensor) -> Tensor:
    """A plane of bits `x > row` for each row of the threshold, one after the other."""
    rows = threshold.view(-1, threshold.shape[-1])
    return torch.cat([pack_bits(x > row).view(torch.int64) for row in rows], -1).view(torch.uint64)


def _words(channels: int, threshold: Tensor) -> int:
    """The words that `_pack_planes` makes of a pixel."""
    return (threshold.shape[0] if threshold.dim() == 2 else 1) * -(-channels // WORD)


def pack_bits(bits: Tensor) -> Tensor:
    """Booleans `[..., C]` -> uint64 words `[..., ceil(C/64)]`; channel c is bit c % 64 of word c / 64."""
    words = -(-bits.shape[-1] // WORD)
    padded = F.pad(bits.to(torch.int64), (0, words * WORD - bits.shape[-1]))
    powers = torch.tensor([1 << i if i < 63 else -(1 << 63) for i in range(WORD)], device=bits.device)
    return (padded.unflatten(-1, (words, WORD)) * powers).sum(-1).view(torch.uint64)


def unpack_signs(words: Tensor, channels: int) -> Tensor:
    """uint64 words `[..., Wc]` -> float32 signs `[..., channels]`."""
    shifts = torch.arange(WORD, device=words.device)
    bits = (words.view(torch.int64).unsqueeze(-1) >> shifts) & 1
    return bits.flatten(-2)[..., :channels].float() * 2 - 1


def pack_weight(weight: Tensor, groups: int, bases: int = 1) -> Tensor:
    """Latent weights `[bases * O, C/groups, kh, kw]` -> uint64 `[bases * O/groups, kh, kw, ceil(C/64)]`, the neutral
    layout."""
    if bases > 1:
        packed = [pack_weight(base, groups).view(torch.int64) for base in weight.chunk(bases)]
        return torch.cat(packed).view(torch.uint64)
    out_channels, group_in, rows, columns = weight.shape
    by_row = (weight > 0).view(groups, out_channels // groups, group_in, rows, columns)
    return pack_bits(by_row.permute(1, 3, 4, 0, 2).reshape(out_channels // groups, rows, columns, groups * group_in))


def unpack_weight(words: Tensor, g: ConvGeometry, bases: int = 1) -> Tensor:
    """The inverse of `pack_weight`, as float32 signs."""
    if bases > 1:
        return torch.cat([unpack_weight(base, g) for base in words.chunk(bases)])
    signs = unpack_signs(words, g.in_channels)
    rows = signs.view(*signs.shape[:3], g.groups, g.in_channels // g.groups)
    return rows.permute(3, 0, 4, 1, 2).reshape(g.out_channels, g.in_channels // g.groups, *g.kernel)


def _epilogue(
    t: Tensor, residual: Tensor, slope: Tensor, shift: Tensor, next_threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """The end that the fused operators share: `y` and its bits."""
    y = _activated(t, residual, slope, shift).to(residual.dtype)
    return y.contiguous(), _pack_planes(y.float(), next_threshold)


def _activated(t: Tensor, residual: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """What `y` is before it is stored."""
    t = t + residual.float()
    return torch.where(t > 0, t, t * slope) + shift


@torch.library.custom_op("binarize::packed_conv2d", mutates_args=())
def packed_conv2d(
    bits: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    link: Tensor,
    gamma: Tensor,
    residual: Tensor,
    slope: Tensor,
    shift: Tensor,
    next_threshold: Tensor,
    gate: Tensor,
    factor: Tensor,
    geometry: list[int],
    terms: list[int],
) -> tuple[Tensor, Tensor]:
    """The fused operator `ai.binarize::BinaryConv2d` of docs/ops.md: NHWC `y` and its packed bits.

    `bits` may have more planes than the conv reads, see `Terms`; those of `y` are as many as `next_threshold` has rows.
    `link`, `residual` and `y` have one element type, float32 or float16; the arithmetic is float32.
    """
    g = geometry_from_ints(geometry)
    form = Terms(*terms)
    all_planes = bits.view(torch.int64).split(-(-g.in_channels // WORD), -1)
    words = all_planes[form.first_plane : form.first_plane + form.bit_planes]
    signs = [unpack_signs(plane.contiguous().view(torch.uint64), g.in_channels).permute(0, 3, 1, 2) for plane in words]
    zero = torch.zeros(1)
    sums = _sum_of_terms(signs, unpack_weight(weight, g, form.bases), scale, zero, g, terms).permute(0, 2, 3, 1)
    y = sums * gate * factor + bias
    if not is_absent(link):
        y = y + gamma * functional.elastic_link(link.float().permute(0, 3, 1, 2), g).permute(0, 2, 3, 1)
    return _epilogue(y, residual, slope, shift, next_threshold)


@packed_conv2d.register_fake
def _(
    bits: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    link: Tensor,
    gamma: Tensor,
    residual: Tensor,
    slope: Tensor,
    shift: Tensor,
    next_threshold: Tensor,
    gate: Tensor,
    factor: Tensor,
    geometry: list[int],
    terms: list[int],
) -> tuple[Tensor, Tensor]:
    g = geometry_from_ints(geometry)
    rows, columns = g.output_size(bits.shape[1], bits.shape[2])
    shape = (bits.shape[0], rows, columns)
    return residual.new_empty(*shape, g.out_channels), bits.new_empty(*shape, _words(g.out_channels, next_threshold))


@torch.library.custom_op("binarize::activate", mutates_args=())
def activate(
    x: Tensor,
    gate: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor,
    slope: Tensor,
    shift: Tensor,
    next_threshold: Tensor,
    channels: int,
) -> tuple[Tensor, Tensor]:
    """The operator `ai.binarize::Activate` of docs/ops.md: a packed conv's epilogue on an NHWC float map.

    It is about the first `channels` channels of `x`. `residual` and `y` have one element type, float32 or float16; `x`
    has it too or is float32.
    """
    return _epilogue(x[..., :channels].float() * gate * scale + bias, residual, slope, shift, next_threshold)


@activate.register_fake
def _(
    x: Tensor,
    gate: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor,
    slope: Tensor,
    shift: Tensor,
    next_threshold: Tensor,
    channels: int,
) -> tuple[Tensor, Tensor]:
    pixels, words = x.shape[:-1], _words(channels, next_threshold)
    return residual.new_empty(*pixels, channels), x.new_empty(*pixels, words, dtype=torch.uint64)


@torch.library.custom_op("binarize::activate_link", mutates_args=())
def activate_link(
    x: Tensor,
    gate: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor,
    slope: Tensor,
    shift: Tensor,
    next_threshold: Tensor,
    gamma: Tensor,
    channels: int,
) -> tuple[Tensor, Tensor]:
    """The operator `ai.binarize::ActivateLink` of docs/ops.md: `activate`, whose `y` is summed to a link."""
    y = _activated(x[..., :channels].float() * gate * scale + bias, residual, slope, shift)
    bits = _pack_planes(y.to(residual.dtype).float(), next_threshold)
    return squeezed_link(y, gamma).to(residual.dtype).contiguous(), bits


def squeezed_link(y: Tensor, gamma: Tensor) -> Tensor:
    """The Elastic Link of the NHWC map `y` to the channels of `gamma`, no more than it has, times `gamma`."""
    return gamma * functional.map_channels(y.permute(0, 3, 1, 2), len(gamma)).permute(0, 2, 3, 1)


@activate_link.register_fake
def _(
    x: Tensor,
    gate: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor,
    slope: Tensor,
    shift: Tensor,
    next_threshold: Tensor,
    gamma: Tensor,
    channels: int,
) -> tuple[Tensor, Tensor]:
    pixels, words = x.shape[:-1], _words(channels, next_threshold)
    return residual.new_empty(*pixels, len(gamma)), x.new_empty(*pixels, words, dtype=torch.uint64)


@torch.library.custom_op("binarize::place", mutates_args=())
def place(x: Tensor, into: Tensor, first: int, channels: int) -> Tensor:
    """The operator `ai.binarize::Place` of docs/ops.md: `into` with `x` as its channels from `first` on, NHWC.

    Where `into` is absent, there are 0 around `x`, `channels` in all.
    """
    wide = into.expand(*x.shape[:-1], channels).clone()
    wide[..., first : first + x.shape[-1]] = x
    return wide


@place.register_fake
def _(x: Tensor, into: Tensor, first: int, channels: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], channels)


@torch.library.custom_op("binarize::gather_channels", mutates_args=())
def gather_channels(a: Tensor, b: Tensor, channels: Tensor, channels_a: int) -> Tensor:
    """The operator `ai.binarize::GatherChannels` of docs/ops.md: `y[..., c] = cat(a, b)[..., channels[c]]`, NHWC.

    Args:
        b: another map, or absent.
        channels: int64 `[C]`; from `channels_a` on, how many `a` has, they are those of `b`.
    """
    return torch.cat([a, b.expand(*a.shape[:-1], b.shape[-1])], -1)[..., channels].contiguous()


@gather_channels.register_fake
def _(a: Tensor, b: Tensor, channels: Tensor, channels_a: int) -> Tensor:
    return a.new_empty(*a.shape[:-1], len(channels))


@torch.library.custom_op("binarize::gate", mutates_args=())
def gate(
    x: Tensor, reduce: Tensor, reduce_bias: Tensor, expand: Tensor, expand_bias: Tensor, silu: bool, hard: bool
) -> Tensor:
    """The operator `ai.binarize::Gate` of docs/ops.md: the factor per image and channel of squeeze-excite, NHWC.

    Args:
        reduce: `[C, R]`, and
        expand: `[R, O]`: what the means over the map are multiplied by, and what that is.
        silu: SiLU is between the two, else ReLU.
        hard: a hard sigmoid is behind them, else a sigmoid.
    """
    hidden = x.float().mean((1, 2)) @ reduce + reduce_bias
    factor = (F.silu(hidden) if silu else hidden.relu()) @ expand + expand_bias
    return (F.hardsigmoid(factor) if hard else factor.sigmoid())[:, None, None, :]


@gate.register_fake
def _(
    x: Tensor, reduce: Tensor, reduce_bias: Tensor, expand: Tensor, expand_bias: Tensor, silu: bool, hard: bool
) -> Tensor:
    return reduce.new_empty(x.shape[0], 1, 1, expand.shape[1])


@torch.library.custom_op("binarize::pool2d", mutates_args=())
def pool2d(
    x: Tensor,
    mode: str,
    kernel: list[int],
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    count_include_pad: bool,
) -> Tensor:
    """The operators `MaxPool` and `AveragePool` of docs/ops.md, on NHWC; `mode` is `max` or `average`."""
    top, left, bottom, right = pads
    maps = x.float().permute(0, 3, 1, 2)
    around = (left, right, top, bottom)
    if mode == "max":
        padded = F.pad(maps, around, value=-torch.inf)
        return F.max_pool2d(padded, kernel, strides, 0, dilations).permute(0, 2, 3, 1).to(x.dtype).contiguous()
    pooled = F.avg_pool2d(F.pad(maps, around), kernel, strides)
    if not count_include_pad and any(pads):
        pooled = pooled / F.avg_pool2d(F.pad(torch.ones_like(maps[:1, :1]), around), kernel, strides)
    return pooled.permute(0, 2, 3, 1).to(x.dtype).contiguous()


@pool2d.register_fake
def _(
    x: Tensor,
    mode: str,
    kernel: list[int],
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    count_include_pad: bool,
) -> Tensor:
    def extent(axis: int) -> int:
        room = x.shape[1 + axis] + pads[axis] + pads[axis + 2] - dilations[axis] * (kernel[axis] - 1) - 1
        return room // strides[axis] + 1

    return x.new_empty(x.shape[0], extent(0), extent(1), x.shape[3])


def is_absent(tensor: Tensor) -> bool:
    """Whether a constant link, residual, gate or factor is the neutral element of docs/ops.md: nothing is there.

    Its shape alone says so, `[1, 1, 1, 1]`.
    """
    return tuple(tensor.shape) == (1, 1, 1, 1)
