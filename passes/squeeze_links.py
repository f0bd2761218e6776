"""A map of which only the squeezed link of one conv is read is not kept: what makes it sums that link.

Nets that activate before they convolve (DenseNet) would write a wide map for each 1x1 conv, and read it once. An
activation of a float layer's map is left to an int8 stem, which takes it in.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.lower_tools import (
    ACTIVATE,
    ACTIVATE_LINK,
    ARGUMENTS,
    TO_NHWC,
    Fused,
    PackedConv,
    add_constant,
    is_item,
    is_permute,
    packed_convs,
    producer_of,
    set_constant,
    set_value_like,
)

LANES = 16
"""What the channels of a link are a multiple of."""


class SqueezeLinks:
    name = "squeeze_links"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        keeps_stem = context.config.export.stem == "int8"
        fitting = [conv for conv in packed_convs(graph_module) if _fits(conv, keeps_stem)]
        for conv in fitting:
            _squeeze(graph_module, conv)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, len(fitting))


def _fits(conv: PackedConv, keeps_stem: bool) -> bool:
    """Whether `conv` alone reads a map that an activation makes, as its link, and adds nothing else."""
    maker = producer_of(conv["link"])
    if maker is None or maker.node.target is not ACTIVATE or not conv.absent("residual"):
        return False
    if keeps_stem and is_permute(maker["x"], TO_NHWC):  # what comes from a float layer
        return False
    g = conv.geometry
    one = sum(is_item(user, 0) for user in maker.node.users) == 1
    alone = one and list(conv["link"].users) == [conv.node] and list(conv.node.args).count(conv["link"]) == 1
    sums = g.link_form == "squeeze" and g.groups == 1 and g.out_channels % LANES == 0
    return alone and sums and g.unit_stride and set(g.kernel) == {1} and not any(g.pads)


def _squeeze(graph_module: GraphModule, conv: PackedConv) -> None:
    """Let the map's maker make the link; the conv adds it like any residual."""
    link: Node = conv["link"]
    activate = Fused(link.args[0])  # type: ignore[arg-type]
    channels = conv.geometry.out_channels
    values = {name: activate[name] for name in ARGUMENTS[ACTIVATE]}
    values["gamma"] = add_constant(
        graph_module, f"{conv.node.meta['layer']}_gamma", conv.value("gamma").expand(channels), activate.node
    )
    activate.node.target = ACTIVATE_LINK
    activate.node.args = tuple(values[name] for name in ARGUMENTS[ACTIVATE_LINK])
    set_value_like(link, link, lambda v: v.new_empty(*v.shape[:3], channels))
    conv.update(link=conv["residual"], residual=link)
    set_constant(graph_module, conv, "gamma", torch.zeros(1))
