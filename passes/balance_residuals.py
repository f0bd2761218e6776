"""Keep one identity path per residual block, although links and the block's own shortcut both offer one.

With a link of weight 1 around every conv *and* the block's shortcut, the identity doubles in each block: 2^9 after
nine, and training does not start (measured: 29.6 % against 36-38 %). So, where `join = main + shortcut`:

- the shortcut is conv-free: the join stays, and the link that closes `main` starts at 0;
- with `link.residual = "replace"`, if the links span the block without losing channels and nothing else lies between,
  the join goes and the links carry the identity (a basic block becomes two Bi-Real blocks);
- the shortcut is a linked projection: the join stays, and the projection's link starts at 0;
- the shortcut is a projection without a link, and the recipe's links cannot change channels and size at once: the
  projection bridges the main branch's first conv alone, as in Bi-Real Net (one shortcut per conv).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import networkx as nx
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from binarize.nn import BinaryConv, RPReLU
from binarize.passes.base import PassContext, PassResult
from binarize.passes.blocks import fork_of
from binarize.passes.graph_tools import (
    ADD_TARGETS,
    calls_function,
    calls_module,
    dataflow,
    is_activation,
    path_of,
    shape_of,
)
from binarize.passes.insert_batch_norm import batch_norm_after
from binarize.passes.insert_elastic_links import is_linked

_MOVES_MODULES = (nn.Identity, nn.Dropout, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool2d, nn.MaxPool3d, nn.ZeroPad2d)
_MOVES_FUNCTIONS = {operator.getitem, F.pad, F.avg_pool2d, F.max_pool2d, F.dropout, "contiguous"}


@dataclass(frozen=True)
class Branch:
    """One operand of a join: its end, the convs between the fork and it, and what else lies there."""

    end: Node
    convs: tuple[Node, ...]
    linked: bool
    pure: bool
    """Nothing but convs, batch norms and activations, beginning with a conv on the fork itself."""
    narrowest: int
    """Fewest channels of any conv's output."""
    identity: bool = False
    """The fork's own values: nothing lies between, or only slicing, padding, pooling and the like."""

    @property
    def spanned(self) -> bool:
        """Whether links lead all the way from the fork to the join."""
        return bool(self.convs) and self.linked


class BalanceResiduals:
    name = "balance_residuals"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        if context.config.link.kind == "none":
            return PassResult(graph_module, 0)
        changed = 0
        for join in [node for node in graph_module.graph.nodes if _is_residual_join(node)]:
            changed += _balance(graph_module, join, context)
        return PassResult(graph_module, changed)


def _is_residual_join(node: Node) -> bool:
    operands = node.all_input_nodes
    return (
        calls_function(node, ADD_TARGETS)
        and len(operands) == 2
        and not node.kwargs  # alpha=...
        and len(shape_of(operands[0]) or ()) > 2
        and shape_of(operands[0]) == shape_of(operands[1])
    )


def _balance(graph_module: GraphModule, join: Node, context: PassContext) -> int:
    flow = dataflow(graph_module.graph)
    fork = fork_of(flow, [join]).get(join)
    if fork is None:
        return 0
    branches = sorted((_branch(flow, fork, end, context) for end in join.all_input_nodes), key=lambda b: len(b.convs))
    shortcut, main = branches
    if _projects_for_one_conv(shortcut, main, join, context):
        return _move_projection(graph_module, shortcut, main, join, context)
    if not main.spanned:
        return 0
    if shortcut.convs:
        return _start_at_zero(shortcut, context) if shortcut.spanned else 0
    if not shortcut.identity:
        return 0
    width = (shape_of(fork) or (0, 0))[1]
    if context.config.link.residual == "replace" and main.pure and main.narrowest >= width:
        join.replace_all_uses_with(main.end)
        graph_module.graph.erase_node(join)
        graph_module.graph.eliminate_dead_code()
        _record(main, "replaced", context)
        return 1
    _record(main, "kept", context)
    return _start_at_zero(main, context)


def _branch(flow: nx.DiGraph, fork: Node, end: Node, context: PassContext) -> Branch:
    if end is fork:
        return Branch(end, (), False, False, 0, identity=True)
    between = (nx.descendants(flow, fork) & nx.ancestors(flow, end)) | {end}
    convs = tuple(
        node
        for node in end.graph.nodes
        if node in between and calls_module(node, _ConvNd) and context.decisions[path_of(node)].rule != "gate"
    )
    binary = [node for node in convs if calls_module(node, BinaryConv)]
    pure = all(calls_module(n, (BinaryConv, _BatchNorm, RPReLU)) or is_activation(n) for n in between)
    return Branch(
        end=end,
        convs=convs,
        linked=len(binary) == len(convs) and all(is_linked(node, context) for node in binary),
        pure=pure and bool(convs) and convs[0].all_input_nodes[0] is fork,
        identity=all(_keeps_values(node) for node in between),
        narrowest=min((context.decisions[path_of(node)].out_channels for node in convs), default=0),
    )


def _projects_for_one_conv(shortcut: Branch, main: Branch, join: Node, context: PassContext) -> bool:
    return (
        context.config.link.kind != "elastic"
        and bool(shortcut.convs)
        and not shortcut.linked
        and main.pure
        and len(main.convs) > 1
        and calls_module(main.convs[0], BinaryConv)
        and shape_of(main.convs[0]) == shape_of(join)
        and all(is_linked(conv, context) for conv in main.convs[1:] if calls_module(conv, BinaryConv))
    )


def _move_projection(
    graph_module: GraphModule, shortcut: Branch, main: Branch, join: Node, context: PassContext
) -> int:
    """Add the projection's value to the first conv's instead of the last one's."""
    first = main.convs[0]
    needed = _needs(shortcut.end)
    if first in needed:
        return 0
    moved = needed - _needs(first)  # constants too, which are no features
    for node in [node for node in graph_module.graph.nodes if node in moved and node.op != "placeholder"]:
        first.prepend(node)
    end = batch_norm_after(first)
    assert end is not None  # insert_batch_norm ran before
    with graph_module.graph.inserting_after(end):
        total = graph_module.graph.call_function(operator.add, (end, shortcut.end))
    total.meta["shape"] = end.meta["shape"]
    end.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
    join.replace_all_uses_with(main.end)
    graph_module.graph.erase_node(join)
    context.unlinked.add(path_of(first))
    context.amend(path_of(first), residual="projection")
    return 1


def _needs(node: Node) -> set[Node]:
    """`node` and all that is computed for it."""
    seen, stack = {node}, [node]
    while stack:
        new = [operand for operand in stack.pop().all_input_nodes if operand not in seen]
        seen.update(new)
        stack += new
    return seen


def _keeps_values(node: Node) -> bool:
    """Whether `node` only moves, drops or averages values: what an identity shortcut may do to fit a shape."""
    return calls_module(node, _MOVES_MODULES) or calls_function(node, _MOVES_FUNCTIONS)


def _start_at_zero(branch: Branch, context: PassContext) -> int:
    context.closed_links.add(path_of(branch.convs[-1]))
    return 1


def _record(branch: Branch, what: str, context: PassContext) -> None:
    for conv in branch.convs:
        context.amend(path_of(conv), residual=what)
