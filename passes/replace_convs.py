"""Replace each planned `nn.Conv2d` by a `BinaryConv2d` at the same path, with the same weight."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule

from binarize.nn import BinaryConv2d
from binarize.passes.base import PassContext, PassResult
from binarize.passes.plan import binarized_convs


class ReplaceConvs:
    name = "replace_convs"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        calls = binarized_convs(graph_module, context)
        for node, _ in calls:
            node.args, node.kwargs = (node.all_input_nodes[0],), {}  # whatever the call named its argument
        changed = 0
        for path in dict.fromkeys(path for _, path in calls):
            conv = graph_module.get_submodule(path)
            assert isinstance(conv, nn.Conv2d)
            if isinstance(conv, BinaryConv2d):
                continue
            decision = context.decisions[path]
            wide = widen_groups(conv, context.config.surgery.depthwise_inputs)
            if wide is not conv:
                grown, numel = conv.groups // wide.groups, wide.weight.numel()
                changes = {"groups": wide.groups, "macs": decision.macs * grown, "weight_bytes": 4 * numel}
                context.amend(path, kind="grouped", **changes)
            binary = BinaryConv2d.from_float(wide, context.config.conv, decision.output_size)
            graph_module.set_submodule(path, binary)
            changed += 1
        return PassResult(graph_module, changed)


def widen_groups(conv: nn.Conv2d, inputs: int) -> nn.Conv2d:
    """A depthwise `conv` as a grouped one in which each output sees about `inputs` channels; others as they are.

    The new weights start as noise of a tenth of the old ones' size, so that signs, which alone count, are random.
    Where the channels are not a multiple, the largest divisor below `inputs` serves.
    Source: MoBiNet (Phan et al., WACV 2020), "K-dependency".
    """
    channels = conv.in_channels
    width = next(k for k in range(min(inputs, channels), 0, -1) if channels % k == 0)
    if width == 1 or conv.groups != channels or conv.out_channels != channels:
        return conv
    wide = nn.Conv2d(
        channels,
        channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        channels // width,
        conv.bias is not None,
        conv.padding_mode,
    ).to(conv.weight)
    with torch.no_grad():
        wide.weight.normal_(std=0.1 * float(conv.weight.abs().mean()))
        wide.weight[torch.arange(channels), torch.arange(channels) % width] = conv.weight[:, 0]
        if conv.bias is not None and wide.bias is not None:
            wide.bias.copy_(conv.bias)
    return wide.train(conv.training)
