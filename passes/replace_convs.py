"""Turn each planned convolution into a binary one."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.modules.conv import _ConvNd

from binarize.nn import BinaryConv
from binarize.nn.materialise import materialise
from binarize.passes.base import PassContext, PassResult
from binarize.passes.graph_tools import module_of
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
            if widen_groups(conv, context.config.surgery.depthwise_inputs):
                grown, numel = decision.groups // conv.groups, conv.weight.numel()
                changes = {"groups": conv.groups, "macs": decision.macs * grown, "weight_bytes": 4 * numel}
                context.amend(path, kind="grouped", **changes)
            BinaryConv.adopt(conv, context.config.conv, decision.output_size)
            changed += 1
        return PassResult(graph_module, changed)


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
