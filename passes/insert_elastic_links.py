"""Bridge every binary conv with an Elastic Link from its float input to its output."""

from __future__ import annotations

import operator
from collections.abc import Callable

from torch.fx import GraphModule, Node

from binarize.nn import BinaryConv, ElasticLink
from binarize.nn.geometry import ConvGeometry
from binarize.passes.base import PassContext, PassResult
from binarize.passes.graph_tools import (
    ADD_TARGETS,
    add_module,
    calls_function,
    calls_module,
    insert_module_call,
    module_of,
    path_of,
)
from binarize.passes.insert_batch_norm import batch_norm_after

SUFFIX = "_link"
"""What a link's path adds to its conv's."""


class InsertElasticLinks:
    name = "insert_elastic_links"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        links: dict[str, str] = {}
        for node in list(graph_module.graph.nodes):
            if not calls_module(node, BinaryConv) or link_of(node) is not None:
                continue
            path = str(node.target)
            conv = graph_module.get_submodule(path)
            assert isinstance(conv, BinaryConv)
            if not is_linked(node, context) or (
                context.config.link.gamma == "one" and path_of(node) in context.closed_links
            ):
                continue
            if path not in links:
                links[path] = add_module(graph_module, path + SUFFIX, _link_for(conv, path_of(node), context))
                context.amend(path_of(node), link=conv.geometry.link_form)
            _bridge(graph_module, node, links[path], context.config.link.position)
        return PassResult(graph_module, len(links))


def is_linked(conv: Node, context: PassContext) -> bool:
    """Whether the configuration wants a link around the binary conv that `conv` calls."""
    module = module_of(conv)
    assert isinstance(module, BinaryConv)
    return path_of(conv) not in context.unlinked and _REACH[context.config.link.kind](module.geometry)


_REACH: dict[str, Callable[[ConvGeometry], bool]] = {
    "elastic": lambda g: True,
    "expand": lambda g: g.out_channels % g.in_channels == 0,
    "pooled": lambda g: g.in_channels == g.out_channels,
    "identity": lambda g: g.keeps_shape,
    "none": lambda g: False,
}


def _link_for(conv: BinaryConv, path: str, context: PassContext) -> ElasticLink:
    link = context.config.link
    start = 0.0 if path in context.closed_links else link.gamma_init
    module = ElasticLink(conv.geometry, gamma=link.gamma, gamma_init=start, pool=link.pool)
    return module.to(conv.weight.device, conv.weight.dtype).train(conv.training)


def _bridge(graph_module: GraphModule, conv: Node, path: str, position: str) -> None:
    """Add the link's value to the conv's (`pre_bn`) or to its batch norm's (`post_bn`)."""
    norm = batch_norm_after(conv)  # none: code that no graph holds has it
    end = conv if position == "pre_bn" or norm is None else norm
    link = insert_module_call(graph_module, end, path, conv.all_input_nodes[0])
    with graph_module.graph.inserting_after(link):
        total = graph_module.graph.call_function(operator.add, (end, link))
    link.meta["shape"] = total.meta["shape"] = end.meta["shape"]
    end.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)


def link_of(conv: Node) -> Node | None:
    """The call of the link that bridges `conv`, if there is one: what is added to the conv's value or to its norm's.

    A name would not tell: a link may be called like that of another conv, and a conv may run twice on one value.
    """
    ends = {conv, batch_norm_after(conv)}
    links = (user for user in conv.all_input_nodes[0].users if calls_module(user, ElasticLink))
    return next((link for link in links if any(_adds(user, ends) for user in link.users)), None)


def _adds(node: Node, ends: set[Node | None]) -> bool:
    return calls_function(node, ADD_TARGETS) and not ends.isdisjoint(node.all_input_nodes)
