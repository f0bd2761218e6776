"""The Elastic Link as plain, differentiable torch code (docs/ops.md states the rule)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.nn.geometry import ConvGeometry


def pool_to_output(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """The mean of each output's link window: `[N, C, H, W] -> [N, C, Ho, Wo]`; 0 for a window off the map."""
    height, width = x.shape[-2:]
    rows, columns = geometry.output_size(height, width)
    stride = geometry.stride
    top, left = -geometry.link_offset(0), -geometry.link_offset(1)
    bottom, right = rows * stride[0] - height - top, columns * stride[1] - width - left
    if top or left or bottom or right:
        x = F.pad(x, (left, right, top, bottom))
    if stride == (1, 1):
        return x
    pooled = F.avg_pool2d(x, stride, stride)
    for axis, (before, after, size) in ((2, (top, bottom, height)), (3, (left, right, width))):
        if before > 0 or after > 0:
            pooled = pooled * _partial_window_factor(pooled, axis, stride[axis - 2], before, size)
    return pooled


def _partial_window_factor(pooled: Tensor, axis: int, stride: int, before: int, size: int) -> Tensor:
    """`stride / (rows of the window inside the map)`: turns a mean over zero padding into one over the map."""
    factors = []
    for i in range(pooled.shape[axis]):
        first = i * stride - before
        inside = min(first + stride, size) - max(first, 0)
        factors.append(stride / max(inside, 1))
    shape = [1, 1, 1, 1]
    shape[axis] = len(factors)
    return torch.tensor(factors, dtype=pooled.dtype, device=pooled.device).view(shape)


def map_channels(x: Tensor, out_channels: int, groups: int = 1) -> Tensor:
    """Expand by copies or squeeze by sums, cyclically inside each group: `[N, C, H, W] -> [N, O, H, W]`.

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
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
    return x.unflatten(1, (terms, out_channels)).sum(dim=1)


def elastic_link(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """The float features `x` in the shape of the conv's output: `[N, C, H, W] -> [N, O, Ho, Wo]`, no gamma.

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
    """`prelu(x - shift_in, slope) + shift_out`, all per channel, on `[N, C, H, W]`.

    Spelled with maximum and minimum: ONNX Runtime's Where took 10.5 ms on a 64 x 112 x 112 map where these take 0.2,
    and its PRelu is as slow. Both spellings give the same bits.
    """
    x = x - shift_in.view(1, -1, 1, 1)
    return x.clamp_min(0) + slope.view(1, -1, 1, 1) * x.clamp_max(0) + shift_out.view(1, -1, 1, 1)
