"""Two nodes that compute the same from the same are one; the exporter would merge them too, but unseen by the proof."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule

from binarize.passes.base import PassContext, PassResult


class MergeEqual:
    name = "merge_equal"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        first_of: dict[Any, Any] = {}
        merged = 0
        for node in list(graph_module.graph.nodes):
            if node.op not in ("call_function", "get_attr"):
                continue
            key = (node.op, node.target, _hashable(node.args), _hashable(node.kwargs))
            first = first_of.setdefault(key, node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph_module.graph.erase_node(node)
                merged += 1
        return PassResult(graph_module, merged)


def _hashable(arguments: Any) -> Any:
    if isinstance(arguments, dict):
        return tuple((name, _hashable(value)) for name, value in arguments.items())
    if isinstance(arguments, list | tuple):
        return tuple(_hashable(argument) for argument in arguments)
    return type(arguments), arguments
