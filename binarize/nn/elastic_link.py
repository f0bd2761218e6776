"""The Elastic Link shortcut."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from binarize.nn.functional import MAX_POOL, channelwise, elastic_link, fit_windows
from binarize.nn.geometry import ConvGeometry


class ElasticLink(nn.Module):
    """Adds what a binary conv loses: its float input, shaped like its output and weighted by `gamma`.

    `EL(x) = gamma * resize(x)`, where channels that grow are copies, channels that shrink are sums over
    non-overlapping groups of the output's size, and a stride is average (or max) pooling.

    Args:
        geometry: of the convolution it bridges.
        gamma: `channel` for one weight per output channel, `scalar` for one in all, `one` for weights that stay as
            they start.
        gamma_init: start of gamma; a squeeze of r channels starts at `gamma_init / r`, that is at the mean.
        pool: `avg` (fused into the packed convolution) or `max` (a separate node).

    Shapes: `[N, C, ...] -> [N, O, ...]` in 1 to 3 dimensions.
    Source: Elastic-Link for Binarized Neural Network (AAAI 2022).
    """

    def __init__(
        self, geometry: ConvGeometry, *, gamma: str = "channel", gamma_init: float = 1.0, pool: str = "avg"
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.pool = pool
        start = gamma_init / self._terms_per_channel()
        if gamma == "scalar":
            start = start.mean().view(1)
        self.gamma = nn.Parameter(start, requires_grad=gamma != "one")

    def _terms_per_channel(self) -> Tensor:
        """How many input channels meet in each output channel, `[O]`."""
        group_in = self.geometry.in_channels // self.geometry.groups
        group_out = self.geometry.out_channels // self.geometry.groups
        if group_out >= group_in:
            return torch.ones(self.geometry.out_channels)
        terms = torch.bincount(torch.arange(group_in) % group_out, minlength=group_out)
        return terms.repeat(self.geometry.groups).float()

    def forward(self, x: Tensor) -> Tensor:
        gamma = channelwise(self.gamma, x)
        if self.pool == "max" and not self.geometry.unit_stride:
            return gamma * elastic_link(self._max_pool(x), self.pooled_geometry)
        return gamma * elastic_link(x, self.geometry)

    @property
    def pooled_geometry(self) -> ConvGeometry:
        """The link's geometry once max pooling has brought the map to the output's size."""
        ones, n = (1,) * self.geometry.dims, self.geometry.dims
        return replace(self.geometry, kernel=ones, stride=ones, pads=(0,) * 2 * n, dilation=ones, same=False)

    def _max_pool(self, x: Tensor) -> Tensor:
        lowest = torch.finfo(x.dtype).min
        pooled = MAX_POOL[self.geometry.dims](fit_windows(x, self.geometry, lowest)[0], self.geometry.stride)
        return torch.where(pooled > lowest, pooled, 0.0)

    def extra_repr(self) -> str:
        g = self.geometry
        return f"{g.in_channels}, {g.out_channels}, {g.link_form}, stride={g.stride}, groups={g.groups}"
