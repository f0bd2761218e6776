"""Decide which operators work channels-last, so that the fewest bytes change layout.

Packed operators are channels-last, float convs channels-first, and what lies between can be either. The cheapest
division is a minimum cut: the capacity between a map's producer and its users is the map's size.
`meta["channels_last"]` marks the nodes that the following passes rewrite.
"""

from __future__ import annotations

import operator
from typing import Any

import networkx as nx
from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.fuse_epilogue import ATEN, BATCH_NORMS
from binarize.passes.layout_rules import SPLITS, is_map, rule_for, size_of
from binarize.passes.lower_activations import fits_activate
from binarize.passes.lower_tools import ACTIVATE, OPS, PACK, PACKED_CONV, POOL, TO_NCHW, TO_NHWC, is_permute

_LAST, _FIRST = "channels last", "channels first"
_FLOAT_CONVS = {ATEN.conv2d.default, ATEN.conv2d.padding, ATEN.convolution.default}
_PACKED = {PACK, PACKED_CONV, ACTIVATE, POOL}
_SLOW = {OPS.rprelu.default, ATEN.prelu.default, ATEN._prelu_kernel.default}
_SLOW_COST = 2
"""Changes of layout that one of these is worth: four passes in standard operators, one as `activate`. Measured on a
64 x 112 x 112 map: 0.65 ms against 0.10, and 0.14 for a change of layout."""
CLIPS = {ATEN.relu.default: (0.0, None), ATEN.hardtanh.default: (-1.0, 1.0), ATEN.clamp.default: (None, None)}
"""Operators that cut off what is below and above, with the limits that they have without arguments."""


class ChooseLayout:
    name = "choose_layout"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        flow = nx.DiGraph()
        flow.add_nodes_from((_LAST, _FIRST))
        places = {node: _place(node) for node in graph_module.graph.nodes}
        for node in places:
            _add_edges(flow, node, places)
        _, (last, _) = nx.minimum_cut(flow, _LAST, _FIRST)
        chosen = [node for node, place in places.items() if place is node and node in last]
        changed = sum("channels_last" not in node.meta for node in chosen)
        for node in chosen:
            node.meta["channels_last"] = True
        return PassResult(graph_module, changed)


def _place(node: Node) -> Any:
    """The layout that `node` insists on, or `node` itself where both will do."""
    if is_permute(node, TO_NHWC) or is_permute(node, TO_NCHW) or node.target in _PACKED:
        return _LAST
    if node.target is operator.getitem:
        source = node.args[0]
        assert isinstance(source, Node)
        place = _place(source)
        return node if place is source else place
    either = (fits_activate(node) or rule_for(node) is not None) and not _belongs_to_float_conv(node)
    return node if either else _FIRST


def _belongs_to_float_conv(node: Node) -> bool:
    """Whether ONNX Runtime takes `node`, a batch norm or a clip, into the float conv before it."""
    if not node.all_input_nodes or node.target not in BATCH_NORMS | CLIPS.keys():
        return False
    source = node.all_input_nodes[0]
    if source.target is operator.getitem:
        source = source.all_input_nodes[0]
    if len(source.users) != 1 and source.target not in BATCH_NORMS:
        return False
    return source.target in _FLOAT_CONVS or (source.target in BATCH_NORMS and _belongs_to_float_conv(source))


def _add_edges(flow: nx.DiGraph, node: Node, places: dict[Node, Any]) -> None:
    """What it costs when `node`'s value and its users differ: one change of layout, however many users want it."""
    if node.target in SPLITS | BATCH_NORMS:  # the items are the operator's own
        for item in node.users:
            _add_edge(flow, places[node], places[item])
            _add_edge(flow, places[item], places[node])
    if not is_map(node):
        return
    if node.target in _SLOW:
        _add_edge(flow, _LAST, places[node], capacity=_SLOW_COST * size_of(node))
    forth, back = (node, "forth"), (node, "back")
    _add_edge(flow, places[node], forth, capacity=size_of(node))
    _add_edge(flow, back, places[node], capacity=size_of(node))
    for user in node.users:
        _add_edge(flow, forth, places[user])
        _add_edge(flow, places[user], back)


def _add_edge(flow: nx.DiGraph, source: Any, target: Any, **capacity: int) -> None:
    """An edge that cannot be cut if it has no capacity."""
    if source is not target:
        flow.add_edge(source, target, **capacity)
