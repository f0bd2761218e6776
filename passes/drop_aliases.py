"""Other names for a value, which `detach` leaves in the graph of a trained model, go: no layout passes through them."""

from __future__ import annotations

from torch.fx import GraphModule

from binarize.passes.base import PassContext, PassResult
from binarize.passes.fuse_epilogue import ATEN

_ALIASES = (ATEN.alias.default, ATEN.detach.default)


class DropAliases:
    name = "drop_aliases"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        aliases = [n for n in graph_module.graph.nodes if n.target in _ALIASES]
        for alias in aliases:
            alias.replace_all_uses_with(alias.all_input_nodes[0])
            graph_module.graph.erase_node(alias)
        return PassResult(graph_module, len(aliases))
