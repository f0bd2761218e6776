"""Swap trainable layers for twins that call our torch custom ops, so that each is one node of the exported graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.errors import UsageError
from binarize.nn import BinaryConv, ChannelInteraction, ElasticLink, RPReLU
from binarize.nn.activation_binarizer import Plane
from binarize.nn.functional import CONV
from binarize.nn.ops import Terms, elastic_link, geometry_to_ints, rprelu
from binarize.passes.lower_dimensions import binary_conv, planes


class _BinaryConv(nn.Module):
    """A `binary_conv2d` over all planes of the input and bases of the weight, then the conv's other factors.

    Most recipes have no such factors; then scale and bias are the op's own.
    """

    scale: Tensor | None
    bias: Tensor | None
    one: Tensor
    zero: Tensor

    def __init__(self, conv: BinaryConv) -> None:
        super().__init__()
        self.geometry = conv.tap_geometry
        self.features = conv.features
        self.modulation = conv.modulation
        self.tail = conv.tail
        edges = conv.interaction
        self.interaction = _Interaction(edges) if edges is not None and edges.sign.any() else None
        scale = conv.weight_factor().detach()
        bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.detach()
        weight = conv.effective_weight().detach()
        spatial = [1] * conv.dims

        def per_channel(values: Tensor) -> Tensor:
            return values.view(-1, *spatial)

        plain = self.interaction is None and not len(self.modulation)
        self.register_buffer("scale", None if self.interaction is None else per_channel(scale))
        self.register_buffer("bias", None if plain or conv.bias is None else per_channel(bias))
        self.register_buffer("one", torch.ones_like(scale))
        self.register_buffer("zero", torch.zeros_like(scale))
        self.parts: list[Terms] = []
        inputs, bases = conv.binarize_input.planes(), conv.binarize_weight.bases(weight)
        whole = [(bases, inputs)] if conv.dims < 3 else [([base], [plane]) for base in bases for plane in inputs]
        own = scale if self.interaction is None else self.one
        for some_bases, some_inputs in whole:
            own_bias = bias if plain and not self.parts else torch.zeros_like(bias)
            self._add_part(conv.threshold.detach(), some_bases, some_inputs, own, own_bias)

    def _add_part(
        self, threshold: Tensor, bases: list[tuple[Tensor, Tensor]], inputs: list[Plane], scale: Tensor, bias: Tensor
    ) -> None:
        """Terms that are one operator: all of them, except in three dimensions, where each is a sum over taps."""
        weights = planes(torch.cat([latent for latent, _ in bases]))
        self.taps = len(weights)
        named = {
            "threshold": _stacked([threshold + offset for plane in inputs for offset in plane.offsets]),
            "scale": _stacked([alpha * plane.weight * scale for _, alpha in bases for plane in inputs]),
            "bias": bias,
        }
        named |= {f"weight_{tap}": plane for tap, plane in enumerate(weights)}
        for name, tensor in named.items():
            self.register_buffer(f"{name}_of_{len(self.parts)}", tensor)
        self.parts.append(Terms(len(inputs), len(bases), int(len(inputs[0].offsets) == 2)))

    def forward(self, x: Tensor) -> Tensor:
        out, features = None, self.features(x)
        for k, terms in enumerate(self.parts):
            weights = [getattr(self, f"weight_{tap}_of_{k}") for tap in range(self.taps)]
            threshold, scale, bias = (getattr(self, f"{name}_of_{k}") for name in ("threshold", "scale", "bias"))
            neutral = (self.one, self.zero)
            part = binary_conv(features, threshold, weights, scale, bias, self.geometry, neutral, terms)
            out = part if out is None else out + part
        assert out is not None
        if self.interaction is not None:
            out = self.interaction(out) * self.scale
        for part in self.modulation:
            out = part(out, x)
        out = out if self.bias is None else out + self.bias
        return out if self.tail is None else self.tail(x, out)


def _stacked(values: list[Tensor]) -> Tensor:
    """`[O]` of one, `[count, O]` of several."""
    return values[0] if len(values) == 1 else torch.stack(values)


class _Interaction(nn.Module):
    """The corrections as a matrix product, which exports."""

    source: Tensor
    weights: Tensor

    def __init__(self, interaction: ChannelInteraction) -> None:
        super().__init__()
        self.limit = interaction.limit
        source, weights = interaction.matrix()
        self.register_buffer("source", source)
        self.register_buffer("weights", weights)

    def forward(self, acc: Tensor) -> Tensor:
        sources = acc.index_select(1, self.source)
        votes = (sources >= self.limit).to(acc) - (sources <= -self.limit).to(acc)
        return acc + CONV[acc.dim() - 2](votes, self.weights[(..., *[None] * (acc.dim() - 2))])


class _Link(nn.Module):
    def __init__(self, link: ElasticLink) -> None:
        super().__init__()
        self.max_pool = link._max_pool if link.pool == "max" and not link.geometry.unit_stride else None
        self.geometry = link.geometry if self.max_pool is None else link.pooled_geometry
        self.register_buffer("gamma", link.gamma.detach().expand(link.geometry.out_channels).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        ints = geometry_to_ints(self.geometry.at(*x.shape[2:]))
        return elastic_link(x if self.max_pool is None else self.max_pool(x), self.gamma, ints)


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
        if isinstance(layer, BinaryConv):
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
