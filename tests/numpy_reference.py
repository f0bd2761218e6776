"""The operators of `ai.binarize` in NumPy: the readable specification (docs/ops.md), slow and obvious.

Sign tensors hold +1 and -1 as integers. Accumulators are exact integers. Floats are rounded to float32 after
every step the specification names, so results agree with the kernels bit for bit.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Float = np.ndarray
Bits = np.ndarray


def pack_bits(positive: np.ndarray) -> Bits:
    """Booleans `[..., C]` to words `[..., ceil(C/64)]` uint64: channel c is bit c % 64 of word c / 64."""
    channels = positive.shape[-1]
    words = -(-channels // 64)
    padded = np.zeros((*positive.shape[:-1], words * 64), dtype=np.uint64)
    padded[..., :channels] = positive
    weights = np.uint64(1) << np.arange(64, dtype=np.uint64)
    return (padded.reshape(*positive.shape[:-1], words, 64) * weights).sum(axis=-1, dtype=np.uint64)


def unpack_signs(bits: Bits, channels: int) -> np.ndarray:
    """Words `[..., ceil(C/64)]` to signs `[..., C]` int32."""
    ones = (bits[..., :, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    flat = ones.reshape(*bits.shape[:-1], -1)[..., :channels]
    return flat.astype(np.int32) * 2 - 1


def pack(x: Float, threshold: Float) -> Bits:
    """`bit = 1 if x > threshold else 0`; x `[N, H, W, C]`, threshold `[C]`, `[1]` or `[planes, C]`."""
    rows = threshold if threshold.ndim == 2 else threshold[None]
    return np.concatenate([pack_bits(x.astype(np.float32) > row) for row in rows], axis=-1)


def wrong_bits(got: Bits, want: Bits, y: Float, threshold: Float, tolerance: float) -> int:
    """How many bits of `y` differ though the value is farther than `tolerance` from the threshold of their plane."""
    rows = threshold if threshold.ndim == 2 else threshold[None]
    differ = np.stack([unpack_signs(part, y.shape[-1]) > 0 for part in np.split(got ^ want, len(rows), axis=-1)], -2)
    far = np.abs(y.astype(np.float32)[..., None, :] - rows) > tolerance
    return int((differ & far).sum())


def pack_weight(weight: np.ndarray, group: int) -> Bits:
    """Signs `[O, C/group, kh, kw]` (torch's layout) to the neutral layout `[O/group, kh, kw, ceil(C/64)]`."""
    out_channels, in_per_group, kh, kw = weight.shape
    rows = out_channels // group
    signs = weight.reshape(group, rows, in_per_group, kh, kw)  # output channel g * rows + j
    by_row = signs.transpose(1, 3, 4, 0, 2).reshape(rows, kh, kw, group * in_per_group)
    return pack_bits(by_row > 0)


@dataclass(frozen=True)
class Conv:
    """Attributes of one BinaryConv2d; pads are top, left, bottom, right."""

    channels: int
    group: int = 1
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    planes: int = 1
    bases: int = 1
    ternary: int = 0
    first_plane: int = 0

    @property
    def terms(self) -> int:
        return self.planes * self.bases

    @property
    def bit_planes(self) -> int:
        return self.planes * (2 if self.ternary else 1)

    def extent(self, size: int, kernel: int, axis: int) -> int:
        """Output rows (axis 0) or columns (axis 1)."""
        room = size + self.pads[axis] + self.pads[axis + 2] - self.dilations[axis] * (kernel - 1) - 1
        return room // self.strides[axis] + 1 if room >= 0 else 0

    def link_offset(self, kernel: int, axis: int) -> int:
        """First row or column of the link window of output 0: `ceil((d (k-1) - (s-1) - 2 p) / 2)`."""
        doubled = self.dilations[axis] * (kernel - 1) - (self.strides[axis] - 1) - 2 * self.pads[axis]
        return -(-doubled // 2)


def accumulate(bits: Bits, weight: Bits, conv: Conv) -> np.ndarray:
    """Exact accumulators of one plane of bits and one base, `[N, Ho, Wo, O]`, int64; a padded tap contributes 0."""
    n, h, w, _ = bits.shape
    rows, kh, kw, _ = weight.shape
    out_h, out_w = conv.extent(h, kh, 0), conv.extent(w, kw, 1)
    top, left, bottom, right = conv.pads
    signs = np.zeros((n, h + top + bottom, w + left + right, conv.channels), dtype=np.int64)
    signs[:, top : top + h, left : left + w] = unpack_signs(bits, conv.channels)
    weights = unpack_signs(weight, conv.channels).astype(np.int64)
    result = np.zeros((n, out_h, out_w, conv.group, rows), dtype=np.int64)
    for r in range(kh):
        for c in range(kw):
            first_row, first_column = r * conv.dilations[0], c * conv.dilations[1]
            tap = signs[
                :,
                first_row : first_row + (out_h - 1) * conv.strides[0] + 1 : conv.strides[0],
                first_column : first_column + (out_w - 1) * conv.strides[1] + 1 : conv.strides[1],
            ].reshape(n, out_h, out_w, conv.group, -1)
            result += np.einsum("nhwgc,jgc->nhwgj", tap, weights[:, r, c].reshape(rows, conv.group, -1))
    return result.reshape(n, out_h, out_w, -1)


def accumulators_by_term(bits: Bits, weight: Bits, conv: Conv) -> np.ndarray:
    """Accumulators `[terms, N, Ho, Wo, O]`, int64: for each base each plane, the latter the mean of two if ternary."""
    digits = 2 if conv.ternary else 1
    planes = np.split(bits, bits.shape[-1] // -(-conv.channels // 64), axis=-1)
    signs = planes[conv.first_plane :][: conv.bit_planes]
    result = []
    for base in np.split(weight, conv.bases):
        for plane in range(conv.planes):
            parts = [accumulate(np.ascontiguousarray(s), base, conv) for s in signs[plane * digits :][:digits]]
            result.append(sum(parts) // digits)
    return np.stack(result)


def sum_of_terms(
    bits: Bits, weight: Bits, conv: Conv, scale: Float, bias: Float, gate: Float | None, factor: Float | None
) -> Float:
    """`t` before the link: from the bias on, a fused multiply-add per term."""
    accumulators = accumulators_by_term(bits, weight, conv).astype(np.float32)
    shape = accumulators.shape[1:]
    scales = np.broadcast_to(scale, (conv.terms, shape[-1]))
    t = np.broadcast_to(bias, shape)
    for accumulator, own in zip(accumulators, scales, strict=True):
        whole = own if gate is None else own * gate
        t = fma(accumulator if factor is None else accumulator * factor, np.broadcast_to(whole, shape), t)
    return t


def elastic_link(link: Float, out_channels: int, kernel: tuple[int, int], conv: Conv) -> Float:
    """`EL(link)` `[N, Ho, Wo, O]`: mean over the stride's window; identity, expand or squeeze per group."""
    n, h, w, channels = link.shape
    out_h, out_w = conv.extent(h, kernel[0], 0), conv.extent(w, kernel[1], 1)
    inputs, outputs = channels // conv.group, out_channels // conv.group
    result = np.zeros((n, out_h, out_w, out_channels), dtype=np.float32)
    for i in range(out_h):
        rows = _window(i, conv.strides[0], conv.link_offset(kernel[0], 0), h)
        for k in range(out_w):
            columns = _window(k, conv.strides[1], conv.link_offset(kernel[1], 1), w)
            if not len(rows) or not len(columns):
                continue
            for o in range(out_channels):
                group, j = divmod(o, outputs)
                sources = [j % inputs] if outputs >= inputs else list(range(j, inputs, outputs))
                terms = [
                    link[:, row, column, group * inputs + source].astype(np.float32)
                    for row in rows
                    for column in columns
                    for source in sources
                ]
                total = functools.reduce(np.add, terms)  # from the first term on: -0 stays -0
                result[:, i, k, o] = total * (np.float32(1) / np.float32(len(rows) * len(columns)))
    return result


def _window(index: int, stride: int, offset: int, size: int) -> range:
    first = index * stride + offset
    return range(max(first, 0), max(min(first + stride, size), max(first, 0)))


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> Float:
    """`a * b + c` of float32 values, rounded once.

    The product of two float32 is exact in float64. The float64 sum is made odd where it is inexact, which
    keeps the second rounding, to float32, from going wrong (Boldo and Melquiond, "Emulation of FMA and
    correctly rounded sums", 2008).
    """
    product = np.asarray(a, dtype=np.float64) * np.asarray(b, dtype=np.float64)
    addend = np.asarray(c, dtype=np.float64)
    total = product + addend
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)
    as_bits = total.view(np.int64)
    inexact = np.isfinite(total) & (error != 0) & (as_bits & 1 == 0)
    toward = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact, as_bits + toward, as_bits).view(np.float64).astype(np.float32)


def binary_conv2d(
    bits: Bits,
    weight: Bits,
    conv: Conv,
    *,
    scale: Float,
    bias: Float,
    link: Float | None = None,
    gamma: Float | None = None,
    residual: Float | None = None,
    slope: Float | None = None,
    shift: Float | None = None,
    next_threshold: Float | None = None,
    gate: Float | None = None,
    factor: Float | None = None,
    stream: type = np.float32,
) -> tuple[Float, Bits]:
    """`(y, next_bits)` of docs/ops.md; parameters are float32 `[O]` or `[1]`, None means neutral.

    `stream` is the element type of link, residual and y.
    """
    t = sum_of_terms(bits, weight, conv, scale, bias, gate, factor)
    out_channels = t.shape[-1]
    full = np.broadcast_to
    if link is not None and gamma is not None:
        t = fma(full(gamma, t.shape), elastic_link(link, out_channels, weight.shape[1:3], conv), t)
    if residual is not None:
        t = t + residual.astype(np.float32)
    if slope is not None:
        t = np.where(t > 0, t, slope * t)
    if shift is not None:
        t = t + shift
    threshold = np.zeros(1, dtype=np.float32) if next_threshold is None else next_threshold
    y = t.astype(stream)
    return y, pack(y, threshold)


def int8_conv2d(
    image: Float,
    factor: float,
    zero_point: int,
    weight: np.ndarray,
    conv: Conv,
    pool_shape: tuple[int, int],
    pool_conv: Conv,
    *,
    scale: Float,
    bias: Float,
    slope: Float,
    shift: Float,
    next_threshold: Float,
    residual: Float | None = None,
    stream: type = np.float32,
    pools_values: bool = False,
) -> tuple[Float, Bits]:
    """`(y, next_bits)` of docs/ops.md, "Int8Conv2d"; `pool_conv` gives the pool's strides and pads."""
    scaled = np.nan_to_num(image * np.float32(factor), nan=-np.inf)
    q = np.rint(np.clip(scaled, -zero_point, 255 - zero_point)).astype(np.int64).transpose(0, 2, 3, 1)
    n, h, w, _ = q.shape
    kernel = weight.shape[2:]
    sums = np.zeros((n, conv.extent(h, kernel[0], 0), conv.extent(w, kernel[1], 1), len(weight)), dtype=np.int64)
    for i in range(sums.shape[1]):
        for k in range(sums.shape[2]):
            for r in range(kernel[0]):
                for t in range(kernel[1]):
                    row, column = i * conv.strides[0] - conv.pads[0] + r, k * conv.strides[1] - conv.pads[1] + t
                    if 0 <= row < h and 0 <= column < w:
                        sums[:, i, k] += q[:, row, column] @ weight[:, :, r, t].T.astype(np.int64)
    # Rounding to float32 never turns the order round, so it may come before the pool.
    exact = sums.astype(np.float32)
    most, least = pool(exact, pool_shape, pool_conv, mode="max"), -pool(-exact, pool_shape, pool_conv, mode="max")

    def value(pooled: Float) -> Float:
        t = fma(pooled, np.broadcast_to(scale, pooled.shape), np.broadcast_to(bias, pooled.shape))
        if residual is not None:
            t = t + residual.astype(np.float32)
        return np.where(t > 0, t, slope * t)

    joined = np.where(value(least) > value(most), value(least), value(most)) if pools_values else value(most)
    y = (joined + shift).astype(stream)
    return y, pack(y, next_threshold)


def activate(
    x: Float,
    *,
    scale: Float,
    bias: Float,
    slope: Float,
    shift: Float,
    next_threshold: Float,
    gate: Float | None = None,
    residual: Float | None = None,
    gamma: Float | None = None,
    stream: type = np.float32,
) -> tuple[Float, Bits]:
    """`(y, next_bits)` of docs/ops.md, "Activate", or with `gamma` of "ActivateLink".

    Parameters are float32 `[C]` or `[1]`, gate `[N, 1, 1, C]`; `x` has the channels that are meant, and no more.
    """
    x = x.astype(np.float32)
    t = x if gate is None else x * gate
    t = fma(t, np.broadcast_to(scale, t.shape), np.broadcast_to(bias, t.shape))
    if residual is not None:
        t = t + residual.astype(np.float32)
    values = np.where(t > 0, t, slope * t) + shift
    y = values.astype(stream)
    bits = pack(y, next_threshold)
    return (y if gamma is None else squeezed_link(values, gamma).astype(stream)), bits


def squeezed_link(values: Float, gamma: Float) -> Float:
    """The sums of channels as far apart as there are in `gamma`, ascending, times `gamma`."""
    sums = values[..., : len(gamma)].copy()
    for channel in range(len(gamma), values.shape[3]):
        sums[..., channel % len(gamma)] += values[..., channel]
    return sums * gamma


def gather_channels(a: Float, b: Float | None, channels: Sequence[int]) -> Float:
    """`y` of docs/ops.md, "GatherChannels"."""
    of_a = a.shape[3]
    return np.stack([a[..., c] if b is None or c < of_a else b[..., c - of_a] for c in channels], axis=-1)


def gate(
    x: Float,
    reduce: Float,
    reduce_bias: Float,
    expand: Float,
    expand_bias: Float,
    *,
    silu: bool = False,
    hard: bool = False,
) -> Float:
    """`factor` of docs/ops.md, "Gate"."""
    size = x.shape[1:3]
    share = np.float32(1) / np.float32(size[0] * size[1])
    mean = np.zeros((len(x), x.shape[3]), np.float32)
    for row in range(size[0]):
        of_row = np.zeros_like(mean)
        for column in range(size[1]):
            of_row = of_row + x[:, row, column].astype(np.float32)
        mean = mean + of_row
    hidden = _project(mean * share, reduce, reduce_bias)
    activated = hidden * sigmoid(hidden) if silu else np.where(hidden < 0, np.float32(0), hidden)
    t = _project(activated, expand, expand_bias)
    line = t * np.float32(1 / 6) + np.float32(0.5)
    return (np.clip(line, np.float32(0), np.float32(1)) if hard else sigmoid(t))[:, None, None, :]


def _project(x: Float, weight: Float, bias: Float) -> Float:
    """Four sums, each of a quarter of the inputs."""
    inputs, outputs = weight.shape
    most = -(-inputs // 4)
    sums = [np.zeros((len(x), outputs), np.float32) for _ in range(4)]
    for i in range(inputs):
        sums[i // most] = fma(x[:, i : i + 1], weight[i], sums[i // most])
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + bias


def sigmoid(t: Float) -> Float:
    """`1 / (1 + e^-t)`, with e^x as `2^n e^r` and eight terms of the series, each step rounded."""
    f = np.float32
    x = -np.clip(t, f(-87), f(87))
    shift = f(12582912)
    shifted = x * f(1.44269504) + shift
    n = shifted - shift
    r = (x - n * f(0.693359375)) - n * f(-2.12194440e-4)
    series = np.full_like(r, f(1 / 5040))
    for term in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1, 1):
        series = series * r + f(term)
    exponent = (shifted.view(np.uint32) - shift.view(np.uint32) + np.uint32(127)) << np.uint32(23)
    return f(1) / (f(1) + series * exponent.view(np.float32))


def place(x: Float, into: Float | None, first: int, channels: int) -> Float:
    """`y` of docs/ops.md, "Place"."""
    y = np.zeros((*x.shape[:3], channels), x.dtype) if into is None else into.copy()
    for channel in range(x.shape[3]):
        y[..., first + channel] = x[..., channel]
    return y


def pool(x: Float, kernel: tuple[int, int], conv: Conv, *, mode: str, count_include_pad: bool = False) -> Float:
    """The pools of docs/ops.md on `[N, H, W, C]`; `conv` gives strides, pads and dilations."""
    n, h, w, channels = x.shape
    out_h, out_w = conv.extent(h, kernel[0], 0), conv.extent(w, kernel[1], 1)
    y = np.zeros((n, out_h, out_w, channels), dtype=np.float32)
    stream, x = x.dtype, x.astype(np.float32)
    for i in range(out_h):
        rows = _taps(i, kernel[0], conv, 0, h)
        for k in range(out_w):
            columns = _taps(k, kernel[1], conv, 1, w)
            values = [[x[:, r, c] for c in columns] for r in rows]
            if not (rows and columns):
                continue
            if mode == "max":
                y[:, i, k] = -np.inf
                for value in itertools.chain(*values):
                    y[:, i, k] = np.where(value > y[:, i, k], value, y[:, i, k])
                continue
            total = _summed([_summed(row) for row in values])
            count = kernel[0] * kernel[1] if count_include_pad else len(rows) * len(columns)
            y[:, i, k] = total * (np.float32(1) / np.float32(count))
    return y.astype(stream)


def _summed(values: list[Float]) -> Float:
    total = np.zeros_like(values[0])
    for value in values:
        total = total + value
    return total


def _taps(index: int, kernel: int, conv: Conv, axis: int, size: int) -> list[int]:
    first = index * conv.strides[axis] - conv.pads[axis]
    return [p for t in range(kernel) if 0 <= (p := first + t * conv.dilations[axis]) < size]
