"""NCHW -> NHWC right behind NHWC -> NCHW is nothing: inside a binary island maps stay NHWC."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.lower_tools import TO_NCHW, TO_NHWC, is_permute


class CancelTransposes:
    name = "cancel_transposes"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        cancelled = 0
        first_of: dict[Node, Node] = {}
        for node in list(graph_module.graph.nodes):
            if not is_permute(node, TO_NHWC):
                continue
            source = node.args[0]
            assert isinstance(source, Node)
            if is_permute(source, TO_NCHW):
                inner = source.args[0]
                assert isinstance(inner, Node)
                node.replace_all_uses_with(inner)
                cancelled += 1
            elif source in first_of:
                node.replace_all_uses_with(first_of[source])
                cancelled += 1
            else:
                first_of[source] = node
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, cancelled)
