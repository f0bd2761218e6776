"""`binary_conv2d` on floats becomes `pack` and `packed_conv2d` on bits, with NHWC at the border."""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

from binarize.nn.ops import Terms, geometry_from_ints, pack_weight
from binarize.passes.base import PassContext, PassResult
from binarize.passes.lower_tools import (
    OPS,
    PACK,
    PACKED_CONV,
    TO_NCHW,
    TO_NHWC,
    add_constant,
    constant,
    permute,
    set_value_like,
    take_origin,
)


class LowerConvs:
    name = "lower_convs"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        nodes = [n for n in graph_module.graph.nodes if n.target is OPS.binary_conv2d.default]
        for node in nodes:
            _lower(graph_module, node)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, len(nodes))


def _lower(graph_module: GraphModule, node: Node) -> None:
    x, threshold, weight, scale, bias, geometry, terms = node.args
    assert isinstance(x, Node) and isinstance(weight, Node)
    ints: list[int] = list(geometry)  # type: ignore[arg-type]
    graph = graph_module.graph
    path = str(weight.target).rpartition(".")[0]
    name = path.replace(".", "_") or "conv"
    groups = geometry_from_ints(ints).groups

    def new(suffix: str, value: torch.Tensor) -> Node:
        return add_constant(graph_module, f"{name}_{suffix}", value, node)

    packed = new("packed_weight", pack_weight(constant(weight), groups, Terms(*terms).bases))  # type: ignore
    absent, zero, one = torch.zeros(1, 1, 1, 1), torch.zeros(1), torch.ones(1)
    nhwc = permute(graph_module, x, TO_NHWC, node)
    rest = [new("link", absent), new("gamma", zero), new("residual", absent)]
    rest += [new("slope", one), new("shift", zero), new("next_threshold", zero)]
    rest += [new("gate", absent + 1), new("factor", absent + 1)]
    with graph.inserting_before(node):
        bits = graph.call_function(PACK, (nhwc, threshold))
        bits.meta["readers"] = [node.name]
        conv = graph.call_function(PACKED_CONV, (bits, packed, scale, bias, *rest, ints, terms))
        y = graph.call_function(operator.getitem, (conv, 0))
    set_value_like(y, node, lambda v: v.permute(TO_NHWC))
    conv.meta["layer"] = name
    conv.meta["path"] = path
    take_origin(conv, node)
    node.replace_all_uses_with(permute(graph_module, y, TO_NCHW, node))
    graph.erase_node(node)
