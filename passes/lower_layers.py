"""Swap trainable layers for twins that call our torch custom ops, so that each is one node of the exported graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.errors import UsageError
from binarize.nn import BinaryConv2d, ElasticLink, RPReLU
from binarize.nn.ops import binary_conv2d, elastic_link, geometry_to_ints, rprelu


class _BinaryConv(nn.Module):
    def __init__(self, conv: BinaryConv2d) -> None:
        super().__init__()
        self.geometry = geometry_to_ints(conv.geometry)
        self.register_buffer("threshold", conv.threshold.detach())
        self.register_buffer("weight", conv.weight.detach())
        self.register_buffer("scale", conv.weight_scale())
        bias = conv.bias.detach() if conv.bias is not None else torch.zeros_like(conv.weight_scale())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return binary_conv2d(x, self.threshold, self.weight, self.scale, self.bias, self.geometry)


class _Link(nn.Module):
    def __init__(self, link: ElasticLink) -> None:
        super().__init__()
        self.max_pool = link._max_pool if link.pool == "max" and link.geometry.stride != (1, 1) else None
        self.geometry = geometry_to_ints(link.geometry if self.max_pool is None else link.pooled_geometry)
        self.register_buffer("gamma", link.gamma.detach().expand(link.geometry.out_channels).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return elastic_link(x if self.max_pool is None else self.max_pool(x), self.gamma, self.geometry)


class _RPReLU(nn.Module):
    def __init__(self, activation: RPReLU) -> None:
        super().__init__()
        slope = activation.slope.detach()
        self.register_buffer("slope", slope)
        for name in ("shift_in", "shift_out"):
            value = getattr(activation, name)
            self.register_buffer(name, torch.zeros_like(slope) if value is None else value.detach())

    def forward(self, x: Tensor) -> Tensor:
        return rprelu(x, self.shift_in, self.slope, self.shift_out)


def lower_layers(module: nn.Module) -> int:
    """Swap every binary conv, link and RPReLU of `module` in place; returns how many."""
    swapped = 0
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if isinstance(layer, BinaryConv2d):
            if layer.weight_bits != 1:
                raise UsageError(
                    "its weights are not binary yet: training stopped in stage 1",
                    layer=name,
                    hint="finish training",
                )
            twin: nn.Module = _BinaryConv(layer)
        elif isinstance(layer, ElasticLink):
            twin = _Link(layer)
        elif isinstance(layer, RPReLU) and name:
            twin = _RPReLU(layer)
        else:
            continue
        module.set_submodule(name, twin)
        swapped += 1
    return swapped
