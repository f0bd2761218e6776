"""Swap trainable layers for twins that call our torch custom ops, so that each is one node of the exported graph."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from binarize.errors import UsageError
from binarize.nn import BinaryConv, ElasticLink, RPReLU
from binarize.nn.activation_binarizer import Plane
from binarize.nn.geometry import ConvGeometry
from binarize.nn.materialise import materialise
from binarize.nn.modules import hooks_of
from binarize.nn.ops import Terms, elastic_link, geometry_to_ints, rprelu
from binarize.nn.sign import hard_sign
from binarize.passes.frozen_norms import batch_norm_of, is_frozen_batch_norm
from binarize.passes.lower_dimensions import binary_conv, planes

READ_BY_CODE = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
"""Besides its weight, attributes of a conv that a model's own `forward` may use."""


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
        for name in READ_BY_CODE:
            setattr(self, name, getattr(conv, name))
        self.weight = conv.weight.detach()
        self.geometry = conv.tap_geometry
        self.features = conv.features
        self.modulation = conv.modulation
        self.tail = conv.tail
        scale = conv.weight_factor().detach()
        bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.detach()
        weight = conv.effective_weight().detach()
        spatial = [1] * conv.dims
        edges = conv.interaction
        latent = conv.binarize_weight.latent(weight)
        self.interaction = _Interaction(conv, latent) if edges is not None and edges.sign.any() else None

        def per_channel(values: Tensor) -> Tensor:
            return values.view(-1, *spatial)

        plain = self.interaction is None and not len(self.modulation)
        scales = self.interaction is not None and not torch.all(scale == 1)
        self.register_buffer("scale", per_channel(scale) if scales else None)
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
        weights = planes(torch.cat([latent for latent, _ in bases]), self.geometry)
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
            out = out + self.interaction(features)
        if self.scale is not None:
            out = out * self.scale
        for part in self.modulation:
            out = part(out, x)
        out = out if self.bias is None else out + self.bias
        return out if self.tail is None else self.tail(x, out)


def _stacked(values: list[Tensor]) -> Tensor:
    """`[O]` of one, `[count, O]` of several."""
    return values[0] if len(values) == 1 else torch.stack(values)


class _Interaction(nn.Module):
    """The corrections as two small convs.

    The first computes the accumulators of the source channels alone; their two limits make a ternary plane of votes,
    which the second, 1x1, adds up. A weight of 0 is the mean of two opposite bases.
    """

    threshold: Tensor
    source_scale: Tensor
    ones_of_edges: Tensor
    zeros_of_edges: Tensor
    limits: Tensor
    votes_0: Tensor
    step: Tensor
    ones_of_outputs: Tensor
    zeros_of_outputs: Tensor

    def __init__(self, conv: BinaryConv, latent: Tensor) -> None:
        super().__init__()
        assert conv.interaction is not None
        source, weights = conv.interaction.matrix()
        edges, outputs, step = len(source), conv.out_channels, conv.interaction.step
        self.geometry = replace(conv.tap_geometry, out_channels=edges, groups=1)
        ones = (1,) * conv.dims
        self.pointwise = ConvGeometry(edges, outputs, ones, ones, (0,) * 2 * conv.dims, ones, 1)
        limit = torch.full((edges,), conv.interaction.limit - 0.5)
        self.register_buffer("limits", torch.stack([limit, -limit]))
        self.register_buffer("threshold", conv.threshold.detach())
        self.register_buffer("source_scale", torch.full((edges,), 0.5))
        self.register_buffer("step", torch.full((outputs,), step / 2))
        votes = weights.view(outputs, edges, *ones)
        named = ("source", _dense(latent, conv.groups)[source], self.geometry), ("votes", votes, self.pointwise)
        for name, weight, geometry in named:
            for tap, plane in enumerate(planes(_opposite_bases(weight), geometry)):
                self.register_buffer(f"{name}_{tap}", plane)
        for name, channels in (("edges", edges), ("outputs", outputs)):
            self.register_buffer(f"ones_of_{name}", torch.ones(channels))
            self.register_buffer(f"zeros_of_{name}", torch.zeros(channels))
        self.taps = len(planes(latent, self.geometry))

    def forward(self, features: Tensor) -> Tensor:
        """The correction of every accumulator."""
        weights = [getattr(self, f"source_{tap}") for tap in range(self.taps)]
        neutral = self.ones_of_edges, self.zeros_of_edges
        scale, bias = self.source_scale, self.zeros_of_edges
        terms = Terms(bases=2)
        sources = binary_conv(features, self.threshold, weights, scale, bias, self.geometry, neutral, terms)
        neutral = self.ones_of_outputs, self.zeros_of_outputs
        bias, terms = self.zeros_of_outputs, Terms(bases=2, ternary=1)
        return binary_conv(sources, self.limits, [self.votes_0], self.step, bias, self.pointwise, neutral, terms)


def _dense(latent: Tensor, groups: int) -> Tensor:
    """Signs of the grouped weight `[O, C/groups, ...]` as a dense one `[O, C, ...]`, 0 outside of its group."""
    signs = hard_sign(latent)
    if groups == 1:
        return signs
    rows = signs.view(groups, -1, *signs.shape[1:])
    dense = signs.new_zeros(groups, rows.shape[1], groups, *signs.shape[1:])
    for group in range(groups):
        dense[group, :, group] = rows[group]
    return dense.view(len(signs), -1, *signs.shape[2:])


def _opposite_bases(weight: Tensor) -> Tensor:
    """Two bases of signs `[2 * O, ...]` whose mean has the signs of `weight`, and 0 where it is 0."""
    return torch.cat([torch.where(weight == 0, sign, weight.sign()) for sign in (1.0, -1.0)])


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
    """Swap every binary conv, link, RPReLU and frozen batch norm of `module` in place; returns how many.

    Weights that something computes, such as weight norm, become constants.
    """
    swapped = 0
    for layer in module.modules():
        materialise(layer)
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
        elif is_frozen_batch_norm(layer) and (norm := batch_norm_of(layer)) is not None:
            twin = norm
        else:
            continue
        vars(twin).update(hooks_of(layer))
        module.set_submodule(name, twin)
        swapped += 1
    return swapped
