"""Activations that leave a sign to binarize."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RPReLU(nn.Module):
    """PReLU with a learnable shift before and after: `prelu(x - shift_in) + shift_out`.

    Args:
        channels: C.
        slope: start of the per-channel slope of the negative side.
        shifts: without them this is a plain per-channel PReLU.

    Shapes: `[N, C, ...] -> [N, C, ...]`. Source: ReActNet (Liu et al., ECCV 2020), section 4.2.
    """

    def __init__(self, channels: int, *, slope: float = 0.25, shifts: bool = True) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((channels,), slope))
        self.shift_in = nn.Parameter(torch.zeros(channels)) if shifts else None
        self.shift_out = nn.Parameter(torch.zeros(channels)) if shifts else None

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        if self.shift_in is not None:
            x = x - self.shift_in.view(shape)
        x = torch.where(x > 0, x, x * self.slope.view(shape))
        if self.shift_out is not None:
            x = x + self.shift_out.view(shape)
        return x

    def extra_repr(self) -> str:
        return f"{self.slope.numel()}, shifts={self.shift_in is not None}"
