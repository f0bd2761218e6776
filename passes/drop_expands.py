"""An operand of a pointwise operator is not expanded to the other's shape: broadcasting does that without a copy."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.fuse_epilogue import ATEN
from binarize.passes.layout_rules import is_pointwise
from binarize.passes.lower_tools import fake_value


class DropExpands:
    name = "drop_expands"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        dropped = 0
        for expand in [n for n in graph_module.graph.nodes if n.target is ATEN.expand.default]:
            source = expand.args[0]
            if fake_value(source).dim() != fake_value(expand).dim():
                continue
            for user in [u for u in expand.users if _broadcasts(u, expand)]:
                user.replace_input_with(expand, source)
                dropped += 1
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, dropped)


def _broadcasts(user: Node, expand: Node) -> bool:
    """Whether another operand of the pointwise `user` has the whole shape."""
    if not is_pointwise(user.target):
        return False
    whole = str(tuple(fake_value(user).shape))
    others = (n for n in user.all_input_nodes if n is not expand and fake_value(n) is not None)
    return any(str(tuple(fake_value(n).shape)) == whole for n in others)
