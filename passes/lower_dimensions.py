"""Convolutions in one and three dimensions in terms of the two-dimensional operator, exactly."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from binarize.nn.functional import channelwise, fill
from binarize.nn.geometry import ConvGeometry
from binarize.nn.ops import Terms, binary_conv2d, geometry_to_ints

ONE_TERM = Terms()


def planes(weight: Tensor, geometry: ConvGeometry) -> list[Tensor]:
    """The weights `[O, C/g, kh, kw]` of the two-dimensional convs that make up one of `weight`."""
    if weight.dim() == 3:
        return [weight.unsqueeze(2)]
    if weight.dim() == 4:
        return [weight]
    if _is_along_depth(geometry):
        return [weight.flatten(3)]
    return [tap.contiguous() for tap in weight.unbind(2)]


def binary_conv(
    x: Tensor,
    threshold: Tensor,
    weights: list[Tensor],
    scale: Tensor,
    bias: Tensor,
    geometry: ConvGeometry,
    neutral: tuple[Tensor, Tensor],
    terms: Terms = ONE_TERM,
) -> Tensor:
    """`bias + sum over terms of scale * conv(sign(x - threshold), sign(weight))` on `[N, C, ...]`.

    Args:
        threshold, scale: `[C]` and `[O]`, or with an axis for planes and terms before; a conv in three dimensions has
            one term.
        weights: the `planes` of the weight, `[bases * O, ...]`.
        neutral: ones and zeros, `[O]` each: scale and bias of a conv that gives a bare accumulator.
    """
    g = geometry.at(*x.shape[2:])
    if g.dims == 1:
        ints = geometry_to_ints(_row(g))
        return binary_conv2d(x.unsqueeze(2), threshold, weights[0], scale, bias, ints, list(terms)).squeeze(2)
    if g.dims == 2:
        return binary_conv2d(x, threshold, weights[0], scale, bias, geometry_to_ints(g), list(terms))
    if _is_along_depth(geometry):  # as `planes` was asked, before the padding was settled
        x = x[..., :: g.stride[1], :: g.stride[2]]
        ints = geometry_to_ints(_along_depth(g))
        rows = binary_conv2d(x.flatten(3), threshold, weights[0], scale, bias, ints, list(terms))
        return rows.unflatten(3, x.shape[3:])
    if _is_in_frames(g):
        return _conv_of_frames(x[:, :, :: g.stride[0]], threshold, weights[0], scale, bias, _in_frame(g), terms)
    return _sum_of_taps(x, threshold, weights, neutral, g, terms) * channelwise(scale, x) + channelwise(bias, x)


def _row(g: ConvGeometry) -> ConvGeometry:
    """A 1-d geometry on a map of one row."""
    pads = (0, g.pads[0], 0, g.pads[1])
    return replace(g, kernel=(1, *g.kernel), stride=(1, *g.stride), pads=pads, dilation=(1, *g.dilation))


def _is_along_depth(g: ConvGeometry) -> bool:
    """Whether the windows of a 3-d conv are columns of frames, as those of factorised ones: (k, 1, 1)."""
    return g.kernel[0] > 1 and g.kernel[1:] == (1, 1) and not g.same and not any((*g.pads[1:3], *g.pads[4:]))


def _along_depth(g: ConvGeometry) -> ConvGeometry:
    """A 3-d geometry whose windows are columns of frames, on maps of `[depth, height * width]`."""
    pads = (g.pads[0], 0, g.pads[3], 0)
    return replace(g, kernel=(g.kernel[0], 1), stride=(g.stride[0], 1), pads=pads, dilation=(g.dilation[0], 1))


def _is_in_frames(g: ConvGeometry) -> bool:
    """Whether every window of a 3-d conv lies in one frame: (1, k, k)."""
    return g.kernel[0] == 1 and g.pads[0] == g.pads[3] == 0


def _in_frame(g: ConvGeometry) -> ConvGeometry:
    """A 3-d geometry in one frame."""
    pads = (*g.pads[1:3], *g.pads[4:])
    return replace(g, kernel=g.kernel[1:], stride=g.stride[1:], dilation=g.dilation[1:], pads=pads)


def _conv_of_frames(
    x: Tensor, threshold: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, g: ConvGeometry, terms: Terms
) -> Tensor:
    """The 2-d conv of each frame of `x` `[N, C, D, H, W]`, which are folded into the batch."""
    folded = x.transpose(1, 2).flatten(0, 1)
    maps = binary_conv2d(folded, threshold, weight, scale, bias, geometry_to_ints(g), list(terms))
    return maps.reshape(-1, x.shape[2], *maps.shape[1:]).transpose(1, 2)


def _sum_of_taps(
    x: Tensor, threshold: Tensor, weights: list[Tensor], neutral: tuple[Tensor, Tensor], g: ConvGeometry, terms: Terms
) -> Tensor:
    """The accumulator of a 3-d conv: one 2-d conv of the frames per tap in depth, moved and summed.

    Output frame i of tap t is the conv of frame `i * stride + t * dilation - pad`; a frame in the padding gives 0, as
    its taps do. Each 2-d conv runs on the frames of one residue of the stride.
    """
    depth, *rest = g.output_size(*x.shape[2:])
    total: Tensor | None = None
    for tap, weight in enumerate(weights):
        shift, residue = divmod(tap * g.dilation[0] - g.pads[0], g.stride[0])
        chosen = x[:, :, residue :: g.stride[0]]
        frames = chosen.shape[2]
        if max(shift, 0) >= frames or shift + depth <= 0:
            continue
        maps = _conv_of_frames(chosen, threshold, weight, *neutral, _in_frame(g), terms)
        maps = fill(maps, (-shift, 0, 0), (shift + depth - frames, 0, 0))
        total = maps if total is None else total + maps
    if total is None:  # every frame that a tap meets is padding
        return x.new_zeros(x.shape[0], g.out_channels, depth, *rest)
    return total
