"""Max pooling before a rising activation instead of behind it: the same values, on a quarter of the map.

`max(f(x)) = f(max(x))` for every f that never falls, rounding included. A stem's pooling then also stays next to its
float conv, where ONNX Runtime has the map in its own layout.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.fuse_epilogue import ATEN, rprelu_of
from binarize.passes.lower_tools import set_value_like, take_origin


class SwapMaxPool:
    name = "swap_max_pool"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        pools = [n for n in graph_module.graph.nodes if n.target is ATEN.max_pool2d.default and _fits(n.args[0])]
        for pool in pools:
            _swap(graph_module, pool)
        return PassResult(graph_module, len(pools))


def _fits(activation: Node) -> bool:
    if len(activation.users) != 1 or activation.target is ATEN.relu.default:  # ONNX Runtime takes that into the conv
        return False
    rprelu = rprelu_of(activation)
    return rprelu is not None and bool(torch.all(rprelu[1] >= 0))


def _swap(graph_module: GraphModule, pool: Node) -> None:
    activation = pool.args[0]
    assert isinstance(activation, Node)
    source = activation.args[0]
    with graph_module.graph.inserting_before(pool):
        first = graph_module.graph.call_function(pool.target, (source, *pool.args[1:]), pool.kwargs)  # type: ignore
        second = graph_module.graph.call_function(activation.target, (first, *activation.args[1:]))  # type: ignore
    for node in (first, second):
        set_value_like(node, pool, lambda v: v)
    take_origin(second, pool)  # the pool of what is not yet activated has none
    pool.replace_all_uses_with(second)
    graph_module.graph.erase_node(pool)
    graph_module.graph.erase_node(activation)
