"""The binary convolution: signs of the input against signs of the weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize.nn.geometry import ConvGeometry
from binarize.nn.sign import SIGN_GRADIENTS, ClipSign


class BinaryConv2d(nn.Conv2d):
    """`scale * conv(sign(x - threshold), sign(weight)) + bias`, with straight-through gradients.

    Takes `nn.Conv2d`'s arguments in its order. `weight` is the latent weight that the optimizer moves; only its
    signs and, through `scale = mean |weight|` per output channel (detached), its size reach the output.
    A padded tap contributes 0. The accumulator is an exact integer; `scale` multiplies it afterwards.

    Args:
        activation_gradient: `approx` or `clip`, see `binarize.nn.sign`.
        scale: `mean_abs` (XNOR-Net, section 3.1) or `none`.

    Attributes:
        threshold: learnable, per input channel `[C]` (RSign of ReActNet).
        weight_bits: 1, or 32 while training with binary activations only (stage 1).

    Shapes: `[N, C, H, W] -> [N, O, Ho, Wo]`.
    """

    def __init__(self, *args: Any, activation_gradient: str = "approx", scale: str = "mean_abs", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.threshold = nn.Parameter(torch.zeros(self.in_channels))
        self.activation_gradient = activation_gradient
        self.scale = scale
        self.weight_bits = 1
        self.geometry = conv_geometry(self)

    @classmethod
    def from_float(
        cls, conv: nn.Conv2d, *, activation_gradient: str = "approx", scale: str = "mean_abs"
    ) -> BinaryConv2d:
        """The binary twin of `conv`, sharing its weight and bias tensors' values, device and dtype."""
        binary = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            activation_gradient=activation_gradient,
            scale=scale,
        )
        with torch.no_grad():
            binary.weight.copy_(conv.weight)
            if conv.bias is not None and binary.bias is not None:
                binary.bias.copy_(conv.bias)
            binary.threshold.data = binary.threshold.data.to(conv.weight)
        return binary.train(conv.training)

    def weight_scale(self) -> Tensor:
        """The scaling factor per output channel, `[O]`, detached from the graph."""
        if self.scale == "none":
            return self.weight.new_ones(self.out_channels)
        return self.weight.detach().abs().mean(dim=(1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        signs = SIGN_GRADIENTS[self.activation_gradient](x - self.threshold.view(1, -1, 1, 1))
        if self.weight_bits != 1:
            return self._convolve(signs, self.weight, self.bias)
        out = self._convolve(signs, ClipSign.apply(self.weight)) * self.weight_scale().view(1, -1, 1, 1)
        return out if self.bias is None else out + self.bias.view(1, -1, 1, 1)

    def _convolve(self, signs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        top, left, bottom, right = self.geometry.pads
        if (top, left) != (bottom, right):
            signs, top, left = F.pad(signs, (left, right, top, bottom)), 0, 0
        return F.conv2d(signs, weight, bias, self.geometry.stride, (top, left), self.geometry.dilation, self.groups)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}"


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
