"""The binary convolution: a composition of an input binarizer, a weight binarizer and factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize.config import ConvConfig
from binarize.errors import UsageError
from binarize.nn.activation_binarizer import activation_binarizer
from binarize.nn.geometry import ConvGeometry
from binarize.nn.interaction import ChannelInteraction
from binarize.nn.scale import modulation, weight_scale
from binarize.nn.weight_binarizer import weight_binarizer


class BinaryConv2d(nn.Conv2d):
    """`scale * conv(q(x - threshold), q(weight)) + bias`, with straight-through gradients.

    Takes `nn.Conv2d`'s arguments in its order. `weight` is the latent weight that the optimizer moves; only its
    signs and, through the scale, its size reach the output. A padded tap contributes 0. With signs on both sides
    the accumulator is an exact integer; everything else multiplies it afterwards.

    Args:
        parts: what the conv is made of (the configuration's table `conv`).
        output_size: rows and columns of the output, for `scale = "spatial"`.

    Attributes:
        threshold: learnable, per input channel `[C]` (RSign of ReActNet).
        binarize_input, binarize_weight: the parts that quantize.
        interaction: corrects the accumulator, or None; `scale` multiplies it per channel, the parts of `modulation`
            in turn by something finer.
        activation_bits: 1, or 32 for `tanh` instead of signs in a first stage of training.
        tail: what surgery put behind a conv that is called by code no graph holds, as `tail(input, output)`.
        weight_bits: 1, or 32 for the latent weights themselves.

    Shapes: `[N, C, H, W] -> [N, O, Ho, Wo]`.
    """

    def __init__(
        self,
        *args: Any,
        parts: ConvConfig | None = None,
        output_size: tuple[int, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._become_binary(parts or ConvConfig(), output_size)

    def _become_binary(self, parts: ConvConfig, output_size: tuple[int, ...] | None) -> None:
        self.threshold = nn.Parameter(torch.zeros(self.in_channels), requires_grad=parts.threshold != "none")
        self.activation_bits = self.weight_bits = 1
        self.tail: nn.Module | None = None
        self.geometry = conv_geometry(self)
        self.binarize_input = activation_binarizer(parts)
        self.binarize_weight = weight_binarizer(parts)
        self.scale = weight_scale(parts, self.weight)
        self.interaction = _interaction(parts, self.geometry)
        self.modulation = modulation(parts, self.geometry, output_size)

    @classmethod
    def adopt(
        cls, conv: nn.Conv2d, parts: ConvConfig | None = None, output_size: tuple[int, ...] | None = None
    ) -> BinaryConv2d:
        """Turn the object `conv` into a binary conv: its parameters, hooks, device, dtype and mode stay."""
        conv.__class__ = cls
        assert isinstance(conv, BinaryConv2d)
        conv._become_binary(parts or ConvConfig(), output_size)
        return conv.to(conv.weight.device, conv.weight.dtype).train(conv.training)

    def weight_factor(self) -> Tensor:
        """The scaling factor per output channel, `[O]`."""
        return self.scale(self.binarize_weight.latent(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolve(x)
        return y if self.tail is None else self.tail(x, y)

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        z = x - _channelwise(self.threshold)
        activations = self.binarize_input(z) if self.activation_bits == 1 else torch.tanh(z)
        if self.weight_bits == 1:
            out = self._convolve(activations, self.binarize_weight(self.weight))
            out = out if self.interaction is None else self.interaction(out)
            out = out * _channelwise(self.weight_factor())
        else:
            out = self._convolve(activations, self.weight)
        for part in self.modulation:
            out = part(out, x)
        return out if self.bias is None else out + _channelwise(self.bias)

    def _convolve(self, activations: Tensor, weight: Tensor) -> Tensor:
        top, left, bottom, right = self.geometry.pads
        if (top, left) != (bottom, right):
            activations, top, left = F.pad(activations, (left, right, top, bottom)), 0, 0
        return F.conv2d(
            activations, weight, None, self.geometry.stride, (top, left), self.geometry.dilation, self.groups
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation_bits={self.activation_bits}, weight_bits={self.weight_bits}"


def _channelwise(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _interaction(parts: ConvConfig, geometry: ConvGeometry) -> ChannelInteraction | None:
    if parts.interactions == 0:
        return None
    if parts.activations != "sign" or parts.weights == "bases":
        raise UsageError(
            "conv.interactions correct integer accumulators, which only signs have",
            hint="--set conv.activations=sign --set conv.weights=sign",
        )
    fan_in = geometry.in_channels // geometry.groups * math.prod(geometry.kernel)
    return ChannelInteraction(geometry.out_channels, fan_in, parts.interactions)


def conv_geometry(conv: nn.Conv2d) -> ConvGeometry:
    """The geometry of a zero-padded `nn.Conv2d`, `padding="same"` and `"valid"` spelled out."""
    kernel, stride, dilation = _pair(conv.kernel_size), _pair(conv.stride), _pair(conv.dilation)
    if conv.padding == "valid":
        pads = (0, 0, 0, 0)
    elif conv.padding == "same":
        total = (dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1))
        begin = (total[0] // 2, total[1] // 2)
        pads = (begin[0], begin[1], total[0] - begin[0], total[1] - begin[1])
    else:
        rows, columns = _pair(conv.padding)  # type: ignore[arg-type]
        pads = (rows, columns, rows, columns)
    return ConvGeometry(conv.in_channels, conv.out_channels, kernel, stride, pads, dilation, conv.groups)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
