"""Replace each planned `nn.Conv2d` by a `BinaryConv2d` at the same path, with the same weight."""

from __future__ import annotations

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
            size = context.decisions[path].output_size
            binary = BinaryConv2d.from_float(conv, context.config.conv, size)
            graph_module.set_submodule(path, binary)
            changed += 1
        return PassResult(graph_module, changed)
