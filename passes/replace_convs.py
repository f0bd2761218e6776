"""Turn each planned convolution into a binary one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.conv import _ConvNd

from binarize.config import Config
from binarize.nn import BinaryConv, RPReLU
from binarize.nn.materialise import materialise
from binarize.passes.base import PassContext, PassResult
from binarize.passes.graph_tools import calls_function, calls_module, is_activation, is_weighted, module_of, path_of
from binarize.passes.plan import binarized_convs


class ReplaceConvs:
    name = "replace_convs"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        calls = binarized_convs(graph_module, context)
        for node, _ in calls:
            node.args, node.kwargs = (node.all_input_nodes[0],), {}  # whatever the call named its argument
        changed = 0
        for node, path in calls:
            conv = module_of(node)
            assert isinstance(conv, _ConvNd)
            if isinstance(conv, BinaryConv):
                continue
            materialise(conv)
            decision = context.decisions[path]
            inputs = context.config.surgery.depthwise_inputs
            is_depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
            if widen_groups(conv, inputs):
                grown, numel = decision.groups // conv.groups, conv.weight.numel()
                changes = {"groups": conv.groups, "macs": decision.macs * grown, "weight_bytes": 4 * numel}
                context.amend(path, kind="grouped", **changes)
            found = _departures(conv, context.config, inputs if is_depthwise else 1)
            if context.config.conv.threshold == "none" and _meets_unbalanced(node, context):
                found = (*found, _UNBALANCED)
            context.amend(path, departures=found)
            BinaryConv.adopt(conv, context.config.conv, decision.output_size)
            changed += 1
        return PassResult(graph_module, changed)


def _departures(conv: _ConvNd, config: Config, inputs: int) -> tuple[str, ...]:
    """Where the recipe's method has no answer for `conv`; `inputs` is how many channels its outputs ought to see."""
    width = conv.in_channels // conv.groups
    found = []
    if config.conv.box_scale and conv.groups > 1:
        found.append("K is left out of grouped convs")
    if config.conv.weights == "centred" and width == 1:
        found.append("weights of one input channel stay uncentred")
    if inputs > 1 and width != inputs:
        found.append(f"outputs see {width} channels, not {inputs}, which does not divide all of them")
    if config.link.kind != "none" and config.link.position == "pre_bn" and config.conv.scale == "none":
        found.append("a link before the batch norm is small beside sums without a scale (conv.scale)")
    if config.conv.scale == "spatial":
        found.append("factors per row and column fix the size of the images (conv.scale)")
    return tuple(found)


_UNBALANCED = (
    "no batch norm or threshold balances the bits of a max-pooled map or a float layer (conv.threshold=median)"
)

_MAX_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_MAX_POOL_FUNCTIONS = {
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
}
_KEEPS_BALANCE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, RPReLU)
"""As activations do that a recipe puts before signs."""


def _meets_unbalanced(conv: Node, context: PassContext) -> bool:
    """Whether the maximum of a window, or a layer that stays float without a batch norm, is what `conv` sees.

    What is added, joined or computed otherwise before it is not judged.
    """
    source = conv.all_input_nodes[0]
    while is_activation(source) or calls_module(source, _KEEPS_BALANCE):
        source = source.all_input_nodes[0]
    if calls_module(source, _MAX_POOLS) or calls_function(source, _MAX_POOL_FUNCTIONS):
        return True
    decision = context.decisions.get(path_of(source)) if source.op == "call_module" else None
    return is_weighted(source) and not (decision is not None and decision.binarized)  # a binary one gets a batch norm


def widen_groups(conv: _ConvNd, inputs: int) -> bool:
    """Make a depthwise `conv` a grouped one in which each output sees about `inputs` channels; whether it did.

    The new weights start as noise of a tenth of the old ones' size, so that signs, which alone count, are random.
    Where the channels are not a multiple, the largest divisor below `inputs` serves.
    Source: MoBiNet (Phan et al., WACV 2020), "K-dependency".
    """
    channels = conv.in_channels
    width = next(k for k in range(min(inputs, channels), 0, -1) if channels % k == 0)
    if width == 1 or conv.groups != channels or conv.out_channels != channels:
        return False
    conv.groups = channels // width
    with torch.no_grad():
        narrow = conv.weight.detach()
        wide = narrow.new_empty(channels, width, *narrow.shape[2:]).normal_(std=0.1)
        wide *= narrow.abs().mean()
        wide[torch.arange(channels), torch.arange(channels) % width] = narrow[:, 0]
        conv.weight = nn.Parameter(wide, requires_grad=conv.weight.requires_grad)
    return True
