"""A float 1x1 conv of one pixel, as in squeeze-excite, is the linear layer `[N, C] -> [N, O]` that it computes.

ONNX Runtime takes a conv into its blocked layout, with a Reorder on either side; a Gemm stays where it is and takes the
activation behind it in. What computes each element of the conv's map by itself is moved onto the rows with it.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.fuse_epilogue import ATEN, BATCH_NORMS
from binarize.passes.layout_rules import is_fixed, is_pointwise, rank_of, shape_of
from binarize.passes.lower_tools import constant, replace_constant, set_value_like, tensor_of

_CONV_DEFAULTS = (None, (1, 1), (0, 0), (1, 1), 1)
"""Of `conv2d`'s arguments behind the weight: bias, stride, padding, dilation, groups."""


class FlattenConvs:
    name = "flatten_convs"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        convs = [n for n in graph_module.graph.nodes if n.target is ATEN.conv2d.default and _fits(n)]
        for conv in convs:
            _flatten(graph_module, conv)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, len(convs))


def _fits(conv: Node) -> bool:
    """Whether `conv` sees one pixel and has a constant weight that nothing else reads.

    One before a batch norm stays: ONNX Runtime takes the norm into a conv, and not into a Gemm.
    """
    source, weight, *rest = conv.args
    arguments: list[Any] = [*rest, *_CONV_DEFAULTS[len(rest) :]]
    padding, groups = arguments[2], arguments[4]
    assert isinstance(source, Node) and isinstance(weight, Node)
    if conv.kwargs or groups != 1 or any(padding):
        return False
    if rank_of(source) != 4 or not is_fixed(source) or shape_of(source)[2:] != (1, 1):
        return False
    if tensor_of(weight) is None or constant(weight).shape[2:] != (1, 1):
        return False
    readers = [n for n in weight.graph.find_nodes(op="get_attr") if n.target == weight.target]
    return [*weight.users] == [conv] and readers == [weight] and not any(u.target in BATCH_NORMS for u in conv.users)


def _flatten(graph_module: GraphModule, conv: Node) -> None:
    source, weight, *rest = conv.args
    assert isinstance(source, Node) and isinstance(weight, Node)
    replace_constant(graph_module, weight, constant(weight).flatten(1))
    rows, last = _rows_of(graph_module, source, conv), conv
    with graph_module.graph.inserting_before(conv):
        rows = graph_module.graph.call_function(ATEN.linear.default, (rows, weight, *rest[:1]))
    set_value_like(rows, conv, lambda v: v.flatten(1))
    while (user := _elementwise_user(last)) is not None:
        with graph_module.graph.inserting_before(user):
            last, rows = user, graph_module.graph.node_copy(user, {last: rows}.__getitem__)
        set_value_like(rows, last, lambda v: v.flatten(1))
    with graph_module.graph.inserting_before(last):
        result = graph_module.graph.call_function(ATEN.reshape.default, (rows, [-1, shape_of(last)[1], 1, 1]))
    set_value_like(result, last, lambda v: v)
    last.replace_all_uses_with(result)


def _rows_of(graph_module: GraphModule, source: Node, before: Node) -> Node:
    """`source` `[N, C, 1, 1]` as `[N, C]`."""
    inner: Any = source.args[0] if source.target is ATEN.reshape.default else None
    if rank_of(inner) == 2 and shape_of(inner)[1] == shape_of(source)[1]:
        rows: Node = inner
        return rows
    with graph_module.graph.inserting_before(before):
        rows = graph_module.graph.call_function(ATEN.reshape.default, (source, [-1, shape_of(source)[1]]))
    return set_value_like(rows, source, lambda v: v.flatten(1))


def _elementwise_user(node: Node) -> Node | None:
    """The only user of `node`, if it computes each element from `node`'s alone, a map of any layout from a map."""
    user = next(iter(node.users), None)
    if user is None or len(node.users) != 1 or not is_pointwise(user.target):
        return None
    fits = user.all_input_nodes == [node] and rank_of(user) == 4 and "memory_format" not in user.kwargs
    return user if fits else None
