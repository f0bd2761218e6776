"""What layers and custom ops share, as plain, differentiable torch code: the Elastic Link, convolution, RPReLU.

Maps are `[N, C, ...]` in one to three dimensions. docs/ops.md states the link's rule: where its windows lie, what a
window off the map gives, how channels grow and shrink. `to_map` and `to_rows` are how linear layers take part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.nn.geometry import ConvGeometry, padding_pairs

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def channelwise(values: Tensor, like: Tensor) -> Tensor:
    """`[C]` shaped so that it meets dimension 1 of `like`."""
    return values.view(1, -1, *[1] * (like.dim() - 2))


def convolve(x: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The zero-padded convolution of `[N, C, ...]` with `[O, C/groups, ...]`, no bias."""
    g = geometry.at(*x.shape[2:])
    begins, ends = g.pads[: g.dims], g.pads[g.dims :]
    if begins != ends:
        x, begins = F.pad(x, padding_pairs(begins, ends)), (0,) * g.dims
    return CONV[g.dims](x, weight, None, g.stride, begins, g.dilation, g.groups)


def fit_windows(x: Tensor, geometry: ConvGeometry, value: float = 0.0) -> tuple[Tensor, list[int], list[int]]:
    """`x` cropped or padded so that link window i is positions `i * stride` to `(i + 1) * stride`; what was added
    before and after, negative where cropped."""
    g = geometry.at(*x.shape[2:])
    size = x.shape[2:]
    before = [-g.link_offset(axis) for axis in range(g.dims)]
    filled = [extent * stride for extent, stride in zip(g.output_size(*size), g.stride, strict=True)]
    after = [want - have - first for want, have, first in zip(filled, size, before, strict=True)]
    return fill(x, before, after, value), before, after


def at_every_size(answer: bool | Tensor) -> bool:
    """Whether `answer` is yes, also where it is about a size that is no number: then for all that it may be.

    Asking the answer itself would tell about the size of the example, and nothing of others.
    """
    if isinstance(answer, bool | Tensor):  # a tensor: of `torch.jit.trace`, whose sizes are those of the example
        return bool(answer)
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # seconds, and training needs none of it

    return statically_known_true(answer)


def fill(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """`x` `[N, C, ...]` with as many positions more, or less, along its last dimensions."""
    if all(at_every_size(amount == 0) for amount in (*before, *after)):
        return x
    return F.pad(x, padding_pairs(before, after), value=value)


def pool_to_output(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """The mean of each output's link window: `[N, C, ...] -> [N, C, ...]`; 0 for a window off the map."""
    size = x.shape[2:]
    x, before, after = fit_windows(x, geometry)
    if geometry.unit_stride:
        return x
    pooled = AVERAGE_POOL[geometry.dims](x, geometry.stride, geometry.stride)
    for axis, extent in enumerate(size):
        if not (at_every_size(before[axis] <= 0) and at_every_size(after[axis] <= 0)):
            pooled = pooled * _partial_window_factor(pooled, axis + 2, geometry.stride[axis], before[axis], extent)
    return pooled


def _partial_window_factor(pooled: Tensor, axis: int, stride: int, before: int, size: int) -> Tensor:
    """`stride / (positions of the window inside the map)`: turns a mean over zero padding into one over the map."""
    first = torch.arange(pooled.shape[axis], device=pooled.device) * stride - before
    inside = (first + stride).clamp(max=size) - first.clamp(min=0)
    shape = [1] * pooled.dim()
    shape[axis] = -1
    return (stride / inside.clamp(min=1)).to(pooled.dtype).view(shape)


def adaptive_mean(x: Tensor, sizes: Sequence[int], first: int = 2) -> Tensor:
    """`adaptive_avg_pool` of a map of any size, over the axes from `first` on, in operators whose sizes may differ."""
    return _adaptive(x, sizes, first, torch.mean)


def adaptive_max(x: Tensor, sizes: Sequence[int], first: int = 2) -> tuple[Tensor]:
    """`adaptive_max_pool`, without its second result."""
    return (_adaptive(x, sizes, first, torch.amax),)


def _adaptive(x: Tensor, sizes: Sequence[int], first: int, reduce: Callable[..., Tensor]) -> Tensor:
    """Axis after axis, each window is a slice, reduced: windows are rectangles, so that a mean of means is right."""
    for axis, count in enumerate(sizes, first):
        extent = x.shape[axis]
        if at_every_size(count == extent):
            continue
        bounds = [(i * extent // count, ((i + 1) * extent + count - 1) // count) for i in range(count)]
        windows = [x[(slice(None),) * axis + (slice(start, end),)] for start, end in bounds]
        x = torch.cat([reduce(window, axis, keepdim=True) for window in windows], axis)
    return x


def map_channels(x: Tensor, out_channels: int, groups: int = 1) -> Tensor:
    """Expand by copies or squeeze by sums, cyclically inside each group: `[N, C, ...] -> [N, O, ...]`.

    Expand: `y[j] = x[j mod c]`. Squeeze: `y[j] = sum of x[i] over i = j, j + o, j + 2o, ...`.
    """
    if x.shape[1] == out_channels:
        return x
    if groups > 1:
        parts = x.chunk(groups, dim=1)
        return torch.cat([map_channels(part, out_channels // groups) for part in parts], dim=1)
    channels = x.shape[1]
    if out_channels > channels:
        copies = -(-out_channels // channels)
        return torch.cat([x] * copies, dim=1)[:, :out_channels]
    terms = -(-channels // out_channels)
    missing = terms * out_channels - channels
    if missing:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    return x.unflatten(1, (terms, out_channels)).sum(dim=1)


def elastic_link(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """The float features `x` in the shape of the conv's output: `[N, C, ...] -> [N, O, ...]`, no gamma.

    Pooling and channel mapping are both linear and commute; the cheaper order is taken.
    """
    if geometry.link_form == "squeeze":
        return pool_to_output(map_channels(x, geometry.out_channels, geometry.groups), geometry)
    return map_channels(pool_to_output(x, geometry), geometry.out_channels, geometry.groups)


def to_map(x: Tensor) -> Tensor:
    """Rows with their channels last as a map: `[N, ..., C] -> [N, C, H, W]`.

    What lies between N and C becomes H and W: missing ones are 1, further ones are merged into H.
    """
    while x.dim() < 4:
        x = x.unsqueeze(-2)
    return x.flatten(1, -3).permute(0, 3, 1, 2)


def to_rows(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `to_map` for rows of `shape`, whose last entry does not count: `[N, O, H, W] -> [N, ..., O]`."""
    rows = x.permute(0, 2, 3, 1)
    return rows if len(shape) == 4 else rows.reshape(*shape[:-1], x.shape[1])


def rprelu(x: Tensor, shift_in: Tensor, slope: Tensor, shift_out: Tensor) -> Tensor:
    """`prelu(x - shift_in, slope) + shift_out`, all per channel, on `[N, C, ...]`.

    Spelled with maximum and minimum: ONNX Runtime's Where took 10.5 ms on a 64 x 112 x 112 map where these take 0.2,
    and its PRelu is as slow. Both spellings give the same bits.
    """
    x = x - channelwise(shift_in, x)
    return x.clamp_min(0) + channelwise(slope, x) * x.clamp_max(0) + channelwise(shift_out, x)
