"""CI-Net's interacted bitcount: strong accumulators of one channel correct another channel's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

THRESHOLD_SHARE, STEP_SHARE = 200 / 576, 100 / 576
"""The released code's constants, 200 and 100, for a fan-in of 64 x 3 x 3; here they follow the layer's fan-in."""


class ChannelInteraction(nn.Module):
    """`acc[y] += sign * step * (1[acc[x] >= limit] - 1[acc[x] <= -limit])` for each edge `x -> y` of a layer.

    No channel is both a source and a target, so the order of the edges does not matter (the released code applies
    them one after the other). The correction is an integer; the gradient passes to `acc[y]` unchanged, none to
    `acc[x]`. An edge of sign 0 is a free slot.

    Args:
        channels: O.
        fan_in: terms of one accumulator.
        capacity: most edges.

    Shapes: `[N, O, Ho, Wo] -> [N, O, Ho, Wo]`. Source: CI-BCNN (Wang et al., CVPR 2019), section 3.2.
    """

    source: Tensor
    target: Tensor
    sign: Tensor

    def __init__(self, channels: int, fan_in: int, capacity: int) -> None:
        super().__init__()
        self.channels = channels
        self.limit = max(1.0, float(round(THRESHOLD_SHARE * fan_in)))
        self.step = max(1.0, float(round(STEP_SHARE * fan_in)))
        for name in ("source", "target", "sign"):
            self.register_buffer(name, torch.zeros(capacity, dtype=torch.int64))

    def matrix(self) -> tuple[Tensor, Tensor]:
        """Source channels `[E]` and the corrections' matrix `[O, E]` of the edges in use."""
        used = torch.nonzero(self.sign).flatten()
        weights = torch.zeros(self.channels, len(used), device=self.sign.device)
        weights[self.target[used], torch.arange(len(used), device=used.device)] = self.step * self.sign[used].float()
        return self.source[used], weights

    def forward(self, acc: Tensor) -> Tensor:
        with torch.no_grad():
            correction = torch.zeros_like(acc).index_add_(1, self.target, self._votes(acc))
        return acc + correction

    def _votes(self, acc: Tensor) -> Tensor:
        sources = acc.index_select(1, self.source)
        votes = (sources >= self.limit).to(acc) - (sources <= -self.limit).to(acc)
        return votes * (self.step * self.sign.to(acc)).view(1, -1, *[1] * (acc.dim() - 2))
