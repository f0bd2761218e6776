"""Turn each planned `nn.Linear` into the 1x1 `nn.Conv2d` that it is, so that every later pass meets convs alone.

A linear layer on `[N, H, W, C]` is a 1x1 conv with its channels last. The conv stands between two layout changes;
elementwise layers behind it move before the second one, so that `Linear, GELU, Linear` stays one run of maps. The
float function is the same, to the bit up to the order of sums.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from binarize.nn.functional import to_map, to_rows
from binarize.passes.base import PassContext, PassResult
from binarize.passes.graph_tools import calls_function, calls_module, is_activation, module_of, path_of, shape_of

_DROPS = (nn.Dropout, nn.Identity)


class ConvertLinears:
    name = "convert_linears"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        graph = graph_module.graph
        nodes = [node for node in graph.nodes if calls_module(node, nn.Linear) and _is_planned(node, context)]
        for node in nodes:
            _bracket(graph, node)
        for path in dict.fromkeys(str(node.target) for node in nodes):
            graph_module.set_submodule(path, as_conv(graph_module.get_submodule(path)))
        for node in list(graph.nodes):
            if calls_function(node, {to_rows}):
                _sink(node)
        for node in list(graph.nodes):
            if calls_function(node, {to_map}) and calls_function(node.all_input_nodes[0], {to_rows}):
                node.replace_all_uses_with(node.all_input_nodes[0].all_input_nodes[0])
        graph.eliminate_dead_code()
        return PassResult(graph_module, len(nodes))


def _is_planned(node: Node, context: PassContext) -> bool:
    decision = context.decisions.get(path_of(node))
    return decision is not None and decision.binarized


def as_conv(linear: nn.Module) -> nn.Conv2d:
    """The 1x1 conv with `linear`'s weight, `[O, C]` as `[O, C, 1, 1]`, and bias."""
    assert isinstance(linear, nn.Linear)
    like = linear.weight
    has_bias = linear.bias is not None
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=has_bias, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        conv.weight.copy_(like[:, :, None, None])
        if conv.bias is not None:
            conv.bias.copy_(linear.bias)
    return conv.train(linear.training)


def _bracket(graph: Graph, node: Node) -> None:
    """`linear(x)` becomes `to_rows(linear(to_map(x)), x.shape)`; the module itself is swapped afterwards."""
    x = node.all_input_nodes[0]
    before = shape_of(x)
    assert before is not None
    with graph.inserting_before(node):
        source = graph.call_function(to_map, (x,))
        shape = graph.call_function(getattr, (x, "shape"))
    source.meta["shape"] = _map_shape(before)
    _put_rows_behind(graph, node, shape)
    node.args, node.kwargs = (source,), {}


def _put_rows_behind(graph: Graph, node: Node, shape: Node) -> Node:
    """`node` gives a map from now on; who reads it gets rows."""
    with graph.inserting_after(node):
        rows = graph.call_function(to_rows, (node, shape))
    node.replace_all_uses_with(rows, delete_user_cb=lambda user: user is not rows)
    rows.meta["shape"] = shape_of(node)
    node.meta["shape"] = _map_shape(shape_of(node) or ())
    return rows


def _map_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """What `to_map` makes of `shape`."""
    return tuple(to_map(torch.empty(shape, device="meta")).shape)


def _sink(rows: Node) -> None:
    """Let elementwise readers of `rows` read the map, and make rows of what they give."""
    source, shape = rows.args
    assert isinstance(source, Node) and isinstance(shape, Node)
    for user in [user for user in rows.users if _is_elementwise(user)]:
        user.replace_input_with(rows, source)
        _sink(_put_rows_behind(rows.graph, user, shape))


def _is_elementwise(node: Node) -> bool:
    """Whether `node` does the same to every value, wherever it stands."""
    module = module_of(node)
    if isinstance(module, nn.PReLU):
        return module.num_parameters == 1
    return len(node.all_input_nodes) == 1 and (is_activation(node) or calls_module(node, _DROPS))
