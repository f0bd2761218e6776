"""What multiplies a binary conv's integer accumulator: a factor per output channel, and finer ones on request."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize.config import ConvConfig
from binarize.errors import UsageError
from binarize.nn.functional import convolve
from binarize.nn.geometry import ConvGeometry


class MeanAbsScale(nn.Module):
    """`mean |weight|` per output channel (XNOR-Net, section 3.1).

    Args:
        detached: whether no gradient flows through it.
    """

    def __init__(self, detached: bool = True) -> None:
        super().__init__()
        self.detached = detached

    def forward(self, latent: Tensor) -> Tensor:
        return (latent.detach() if self.detached else latent).abs().flatten(1).mean(1)


class UnitScale(nn.Module):
    """1: the batch norm behind the conv finds the factor."""

    def forward(self, latent: Tensor) -> Tensor:
        return latent.new_ones(len(latent))


class LearnedScale(nn.Module):
    """One learned factor per output channel, starting at `mean |weight|`.

    Source: XNOR-Net++ (Bulat and Tzimiropoulos, BMVC 2019), case 1.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(weight.detach().abs().flatten(1).mean(1))

    def forward(self, latent: Tensor) -> Tensor:
        return self.factor


class SpatialScale(nn.Module):
    """Multiplies by learned factors per row and per column of the output, starting at 1; they fix the input's size.

    Shapes: `[N, O, Ho, Wo] -> [N, O, Ho, Wo]`. Source: XNOR-Net++, case 4 (with `LearnedScale` as its first factor).

    Raises:
        UsageError: the map has another size.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.ones(rows, 1))
        self.columns = nn.Parameter(torch.ones(1, columns))

    def forward(self, out: Tensor, x: Tensor) -> Tensor:
        size = (len(self.rows), self.columns.shape[1])
        if tuple(out.shape[2:]) != size:
            raise UsageError(
                f'conv.scale = "spatial" was made for maps of {size[0]} x {size[1]}, and this one has '
                f"{' x '.join(map(str, out.shape[2:]))}",
                hint="give images of the size of the example, or convert with --set conv.scale=learned",
            )
        return out * self.rows * self.columns


class ChannelGate(nn.Module):
    """Multiplies by a factor per image and output channel from the conv's float input x:
    `sigmoid(W2 relu(W1 mean(x)))`, no biases.

    Args:
        in_channels, out_channels: of the conv.
        reduction: the hidden layer has `in_channels / reduction` units.
        start: `random`, or `even`: W2 starts at 0 and every factor at 1/2, so that a converted net's channels keep
            their proportions.

    Shapes: `[N, O, Ho, Wo], [N, C, H, W] -> [N, O, Ho, Wo]`.
    Source: Real-to-Binary (Martinez et al., ICLR 2020), section 4.2.
    """

    def __init__(self, in_channels: int, out_channels: int, reduction: int = 8, start: str = "random") -> None:
        super().__init__()
        self.squeeze = nn.Linear(in_channels, max(1, in_channels // reduction), bias=False)
        self.excite = nn.Linear(self.squeeze.out_features, out_channels, bias=False)
        for layer in (self.squeeze, self.excite):
            nn.init.kaiming_normal_(layer.weight)
        if start == "even":
            nn.init.zeros_(self.excite.weight)

    def forward(self, out: Tensor, x: Tensor) -> Tensor:
        spatial = tuple(range(2, x.dim()))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(spatial)))))
        return out * gate.view(*gate.shape, *[1] * len(spatial))


class BoxScale(nn.Module):
    """Multiplies by XNOR-Net's K: the mean of |x| over channels and over the conv's window, one per output pixel.

    The window counts taps in the padding as 0, so K is smaller at borders. Grouped convs go without: there K would be
    per group and, for depthwise ones, cost as much as the float conv.

    Shapes: `[N, O, Ho, Wo], [N, C, H, W] -> [N, O, Ho, Wo]`.
    Source: XNOR-Net (Rastegari et al., ECCV 2016), section 3.2.
    """

    box: Tensor

    def __init__(self, geometry: ConvGeometry) -> None:
        super().__init__()
        taps = math.prod(geometry.kernel)
        self.geometry = replace(geometry, in_channels=1, out_channels=1)
        self.register_buffer("box", torch.full((1, 1, *geometry.kernel), 1 / taps), persistent=False)

    def forward(self, out: Tensor, x: Tensor) -> Tensor:
        magnitude = x.detach().abs().mean(dim=1, keepdim=True)
        if self.geometry.is_pooling:  # of one channel: the export has it channels-last
            kernel, stride, pads = self.geometry.kernel, self.geometry.stride, self.geometry.pads[:2]
            return out * F.avg_pool2d(magnitude, kernel, stride, pads)
        return out * convolve(magnitude, self.box.to(x), self.geometry)


def modulation(config: ConvConfig, geometry: ConvGeometry, output_size: tuple[int, ...] | None) -> nn.ModuleList:
    """What multiplies the scaled accumulator, in order; each takes it and the conv's float input.

    Raises:
        UsageError: the spatial scale needs the output's size, of rows and columns.
    """
    parts: list[nn.Module] = []
    if config.box_scale and geometry.groups == 1:
        parts.append(BoxScale(geometry))
    if config.gate:
        channels = geometry.in_channels, geometry.out_channels
        parts.append(ChannelGate(*channels, config.gate_reduction, config.gate_start))
    if config.scale == "spatial":
        if geometry.dims != 2:
            raise UsageError(
                f'conv.scale = "spatial" is for maps of rows and columns, not of {geometry.dims} dimension(s)',
                hint="--set conv.scale=learned",
            )
        if output_size is None:
            raise UsageError(
                'conv.scale = "spatial" needs one output size, and this conv runs on several or none',
                hint="--set conv.scale=learned",
            )
        parts.append(SpatialScale(*output_size))
    return nn.ModuleList(parts)


def weight_scale(config: ConvConfig, weight: Tensor) -> nn.Module:
    """The part that `conv.scale` names; weight bases bring their own factors."""
    if config.weights == "bases" or config.scale == "none":
        return UnitScale()
    if config.scale in ("learned", "spatial"):
        return LearnedScale(weight)
    return MeanAbsScale(detached=config.weight_gradient != "exact")
