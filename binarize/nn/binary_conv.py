"""The binary convolution: a composition of an input binarizer, a weight binarizer and factors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from binarize.config import ConvConfig
from binarize.errors import UnsupportedModelError, UsageError
from binarize.nn.activation_binarizer import activation_binarizer
from binarize.nn.dissection import CONV_CLASSES, computes_itself, dissect, effective_weight
from binarize.nn.functional import channelwise, convolve
from binarize.nn.geometry import ConvGeometry
from binarize.nn.interaction import ChannelInteraction
from binarize.nn.scale import modulation, weight_scale
from binarize.nn.weight_binarizer import weight_binarizer


class BinaryConv(_ConvNd):
    """`scale * conv(q(x - threshold), q(weight)) + bias`, with straight-through gradients.

    In one, two and three dimensions: `BinaryConv1d`, `BinaryConv2d`, `BinaryConv3d` take the arguments of torch's
    classes in their order. A conv of another class keeps that class as a second base, and with it what its `forward`
    makes of the weight. Padding other than with zeros pads the float features, which is exact.

    `weight` is the latent weight that the optimizer moves; only its signs and, through the scale, its size reach the
    output. A zero-padded tap contributes 0. With signs on both sides the accumulator is an exact integer; everything
    else multiplies it afterwards.

    Args:
        parts: what the conv is made of (the configuration's table `conv`).
        output_size: rows and columns of the output, for `scale = "spatial"`.

    Attributes:
        threshold: learnable, per input channel `[C]` (RSign of ReActNet).
        binarize_input, binarize_weight: the parts that quantize.
        interaction: corrects the accumulator, or None; `weight_scale` multiplies it per channel, the parts
            of `modulation` in turn by something finer.
        activation_bits: 1, or 32 for `tanh` instead of signs in a first stage of training.
        tail: what surgery put behind a conv that is called by code no graph holds, as `tail(input, output)`.
        weight_bits: 1, or 32 for the latent weights themselves.

    Shapes: `[N, C, ...] -> [N, O, ...]`.
    """

    in_channels: int
    binarize_input: Any
    binarize_weight: Any
    weight_scale: Any
    modulation: Any
    threshold: nn.Parameter

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
        self.weight_scale = weight_scale(parts, self.effective_weight().detach())
        self.interaction = _interaction(parts, self.geometry)
        self.modulation = modulation(parts, self.geometry, output_size)

    @staticmethod
    def adopt(conv: _ConvNd, parts: ConvConfig | None = None, output_size: tuple[int, ...] | None = None) -> BinaryConv:
        """Turn the object `conv` into a binary conv: its parameters, hooks, device, dtype and mode stay.

        Raises:
            UnsupportedModelError: see `conv_geometry`.
        """
        conv_geometry(conv)
        conv.__class__ = binary_class(type(conv))
        assert isinstance(conv, BinaryConv)
        conv._become_binary(parts or ConvConfig(), output_size)
        like = next(conv.parameters())
        return conv.to(like.device, like.dtype).train(conv.training)

    @property
    def tap_geometry(self) -> ConvGeometry:
        """Of the convolution of signs: without the padding that the float features get."""
        return self.geometry if self.padding_mode == "zeros" else replace(self.geometry, pads=(0,) * 2 * self.dims)

    @property
    def dims(self) -> int:
        return self.geometry.dims

    def effective_weight(self) -> Tensor:
        """What the latent weight is before it is binarized: itself, or what the conv's own class makes of it."""
        own = float_class(type(self))
        return effective_weight(self, own) if computes_itself(own) else self.weight

    def features(self, x: Tensor) -> Tensor:
        """The float features whose signs are taken: `x`, padded where the padding is not with zeros."""
        if self.padding_mode == "zeros":
            return x
        return F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)

    def weight_factor(self) -> Tensor:
        """The scaling factor per output channel, `[O]`."""
        return self.weight_scale(self.binarize_weight.latent(self.effective_weight()))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolve(x)
        return y if self.tail is None else self.tail(x, y)

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        z = self.features(x)
        z = z - channelwise(self.threshold, x)
        activations = self.binarize_input(z) if self.activation_bits == 1 else torch.tanh(z)
        weight = self.effective_weight()
        if self.weight_bits == 1:
            out = convolve(activations, self.binarize_weight(weight), self.tap_geometry)
            out = out if self.interaction is None else self.interaction(out)
            out = out * channelwise(self.weight_scale(self.binarize_weight.latent(weight)), out)
        else:
            out = convolve(activations, weight, self.tap_geometry)
        for part in self.modulation:
            out = part(out, x)
        return out if self.bias is None else out + channelwise(self.bias, out)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (float_class(type(self)),), vars(self)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation_bits={self.activation_bits}, weight_bits={self.weight_bits}"


class BinaryConv1d(BinaryConv, nn.Conv1d):
    """`BinaryConv` on `[N, C, L]`."""


class BinaryConv2d(BinaryConv, nn.Conv2d):
    """`BinaryConv` on `[N, C, H, W]`."""


class BinaryConv3d(BinaryConv, nn.Conv3d):
    """`BinaryConv` on `[N, C, D, H, W]`."""


_BINARY: dict[type[nn.Module], type[BinaryConv]] = {
    nn.Conv1d: BinaryConv1d,
    nn.Conv2d: BinaryConv2d,
    nn.Conv3d: BinaryConv3d,
}


def binary_class(kind: type[nn.Module]) -> type[BinaryConv]:
    """The binary class for convs of `kind`, which stays a base of it."""
    if kind not in _BINARY:
        base = next(_BINARY[plain] for plain in CONV_CLASSES if issubclass(kind, plain))
        _BINARY[kind] = type(f"Binary{kind.__name__}", (base, kind), {"__module__": __name__})
    return _BINARY[kind]


def float_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The inverse of `binary_class`."""
    return next(plain for plain, binary in _BINARY.items() if binary is kind)


def _rebuild(kind: type[nn.Module]) -> BinaryConv:
    cls = binary_class(kind)
    return cls.__new__(cls)


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


def conv_geometry(conv: _ConvNd) -> ConvGeometry:
    """The geometry of a convolution, `padding="same"` and `"valid"` spelled out.

    Raises:
        UnsupportedModelError: it is transposed, or its class computes something that has no binary form.
    """
    kind = float_class(type(conv)) if isinstance(conv, BinaryConv) else type(conv)
    if conv.transposed or not issubclass(kind, tuple(CONV_CLASSES)):
        raise UnsupportedModelError(f"{kind.__name__} has no binary form")
    if computes_itself(kind):
        return dissect(conv, kind)
    n, kernel, dilation = len(conv.kernel_size), tuple(conv.kernel_size), tuple(conv.dilation)
    if conv.padding == "valid":
        pads: tuple[int, ...] = (0,) * 2 * n
    elif conv.padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        pads = (*[total // 2 for total in totals], *[total - total // 2 for total in totals])
    else:
        pads = tuple(int(pad) for pad in conv.padding) * 2
    return ConvGeometry(conv.in_channels, conv.out_channels, kernel, tuple(conv.stride), pads, dilation, conv.groups)
