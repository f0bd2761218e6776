"""Swap trainable layers for twins that call our torch custom ops, so that each is one node of the exported graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize.errors import UsageError
from binarize.nn import BinaryConv2d, ChannelInteraction, ElasticLink, RPReLU
from binarize.nn.ops import binary_conv2d, elastic_link, geometry_to_ints, rprelu


class _BinaryConv(nn.Module):
    """A `binary_conv2d` per plane of the input and base of the weight, summed, then the conv's other factors.

    Most recipes have one term and no such factors; then scale and bias are the op's own.
    """

    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, conv: BinaryConv2d) -> None:
        super().__init__()
        self.geometry = geometry_to_ints(conv.geometry)
        self.modulation = conv.modulation
        edges = conv.interaction
        self.interaction = _Interaction(edges) if edges is not None and edges.sign.any() else None
        scale = conv.weight_factor().detach()
        bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.detach()
        plain = self.interaction is None and not len(self.modulation)
        self.register_buffer("scale", None if self.interaction is None else scale.view(-1, 1, 1))
        self.register_buffer("bias", None if plain or conv.bias is None else bias.view(-1, 1, 1))
        self.terms = 0
        for offset, beta in conv.binarize_input.planes():
            for latent, alpha in conv.binarize_weight.bases(conv.weight):
                self._add_term(
                    conv.threshold.detach() + offset,
                    latent,
                    alpha * beta * (scale if self.interaction is None else 1.0),
                    bias if plain and self.terms == 0 else torch.zeros_like(bias),
                )

    def _add_term(self, *tensors: Tensor) -> None:
        for name, tensor in zip(_TERM, tensors, strict=True):
            self.register_buffer(f"{name}_{self.terms}", tensor)
        self.terms += 1

    def forward(self, x: Tensor) -> Tensor:
        out = None
        for k in range(self.terms):
            term = binary_conv2d(x, *(getattr(self, f"{name}_{k}") for name in _TERM), self.geometry)
            out = term if out is None else out + term
        assert out is not None
        if self.interaction is not None:
            out = self.interaction(out) * self.scale
        for part in self.modulation:
            out = part(out, x)
        return out if self.bias is None else out + self.bias


_TERM = ("threshold", "weight", "scale", "bias")


class _Interaction(nn.Module):
    """The corrections as a matrix product, which exports."""

    source: Tensor
    weights: Tensor

    def __init__(self, interaction: ChannelInteraction) -> None:
        super().__init__()
        self.limit = interaction.limit
        source, weights = interaction.matrix()
        self.register_buffer("source", source)
        self.register_buffer("weights", weights[:, :, None, None])

    def forward(self, acc: Tensor) -> Tensor:
        sources = acc.index_select(1, self.source)
        votes = (sources >= self.limit).to(acc) - (sources <= -self.limit).to(acc)
        return acc + F.conv2d(votes, self.weights)


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
            if layer.weight_bits != 1 or layer.activation_bits != 1:
                raise UsageError(
                    "it is not binary yet: training stopped in an early stage",
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
