"""What computes squeeze-excite's factors, and Real-to-Binary's gates, from a map is one operator.

In standard operators that is a pool, two matrix products on a vector each, their activations and two changes of shape:
nodes of a few thousand multiplications, half of which take longer to start than to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from binarize.passes.base import PassContext, PassResult
from binarize.passes.layout_rules import ATEN, CHANNELS, is_map, rank_of, same_extent, shape_of
from binarize.passes.lower_tools import GATE, POOL, add_constant, constant, replace_constant, set_value_like, tensor_of

_HIDDEN: dict[Any, bool] = {ATEN.relu.default: False, ATEN.silu.default: True}
"""What stands between the two layers; whether it is SiLU."""
_FACTORS: dict[Any, bool] = {ATEN.sigmoid.default: False, ATEN.hardsigmoid.default: True}
"""What makes factors of the second one; whether it is hard."""
_PIXELS = (1, 2)
"""Their axes in a channels-last map."""


class FuseGates:
    name = "fuse_gates"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        gates = [gate for node in graph_module.graph.nodes if (gate := _gate(node)) is not None]
        for gate in gates:
            gate.fuse(graph_module)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, len(gates))


@dataclass(frozen=True)
class _Linear:
    """A linear layer on vectors `[N, C]`: constants `[O, C]` and `[O]`."""

    source: Node
    weight: Node
    bias: Node | None

    def constants(self, graph_module: GraphModule, before: Node) -> tuple[Node, Node]:
        """The weight as a gate has it, `[C, O]`, and a bias."""
        weight, bias = self.weight, self.bias
        turned = constant(weight).T
        if len(weight.users) == 1 and len(weight.graph.find_nodes(op="get_attr", target=str(weight.target))) == 1:
            replace_constant(graph_module, weight, turned)
        else:
            weight = add_constant(graph_module, f"{before.name}_weight", turned, before)
        if bias is None:
            bias = add_constant(graph_module, f"{before.name}_bias", torch.zeros(1), before)
        return weight, bias


@dataclass(frozen=True)
class _Gate:
    """A map `[N, H, W, C]`, the layers behind its mean, and the nodes that activate what they give."""

    x: Node
    reduce: _Linear
    hidden: Node
    expand: _Linear
    factor: Node

    def fuse(self, graph_module: GraphModule) -> None:
        factor, graph = self.factor, graph_module.graph
        constants = [node for layer in (self.reduce, self.expand) for node in layer.constants(graph_module, factor)]
        with graph.inserting_before(factor):
            arguments: Any = (self.x, *constants, _HIDDEN[self.hidden.target], _FACTORS[factor.target])
            gate = graph.call_function(GATE, arguments)
        set_value_like(gate, factor, lambda v: v[:, None, None])
        outputs = shape_of(factor)[1]
        for spread in list(_spreads(factor, outputs)):
            spread.replace_all_uses_with(gate)
        if factor.users:
            with graph.inserting_before(factor):
                vectors = graph.call_function(ATEN.reshape.default, (gate, [-1, outputs]))
            factor.replace_all_uses_with(set_value_like(vectors, factor, lambda v: v))


def _gate(factor: Node) -> _Gate | None:
    """The gate whose factors `[N, O]` are `factor`'s, if they are one's."""
    expand = _linear(factor.args[0]) if factor.target in _FACTORS else None
    hidden = expand.source if expand is not None else None
    if hidden is None or hidden.target not in _HIDDEN or len(hidden.users) > 1:
        return None
    reduce = _linear(hidden.args[0])
    x = _averaged(reduce.source) if reduce is not None else None
    return None if reduce is None or expand is None or x is None else _Gate(x, reduce, hidden, expand, factor)


def _linear(node: Any) -> _Linear | None:
    """The linear layer that `node` is, with constants, if its only reader is what asks."""
    if (
        not isinstance(node, Node)
        or node.target is not ATEN.linear.default
        or len(node.users) > 1
        or rank_of(node) != 2
    ):
        return None
    source, weight, *biases = node.args
    constants = [n for n in (weight, *biases) if n is not None]
    if not isinstance(source, Node) or any(not _is_float_constant(n) for n in constants):
        return None
    return _Linear(source, *constants, *[None] * (2 - len(constants)))  # type: ignore[arg-type]


def _is_float_constant(node: Any) -> bool:
    value = tensor_of(node)
    return value is not None and value.dtype == torch.float32


def _averaged(vectors: Node) -> Node | None:
    """The channels-last map whose mean over the pixels the vectors `[N, C]` are."""
    mean: Any = vectors.args[0] if vectors.target is ATEN.reshape.default else vectors
    averages = (mean.target is ATEN.mean.dim and _is_over_pixels(mean)) or (mean.target is POOL and _is_whole(mean))
    x: Node = mean.args[0] if averages else mean
    fits = averages or _is_pixel(mean)
    return x if fits and same_extent(shape_of(x)[CHANNELS], shape_of(vectors)[1]) else None


def _is_whole(pool: Node) -> bool:
    """Whether `pool` averages whole maps."""
    x, mode, kernel, _, pads, *_ = pool.args
    return mode == "average" and list(shape_of(x)[1:3]) == list(kernel) and not any(pads)  # type: ignore


def _is_over_pixels(mean: Node) -> bool:
    x, axes = mean.args[:2]
    plain = is_map(x) and rank_of(x) == 4 and not mean.kwargs
    return plain and sorted(axis % 4 for axis in axes) == list(_PIXELS)  # type: ignore


def _is_pixel(node: Node) -> bool:
    """Whether `node` is a map `[N, 1, 1, C]`."""
    return rank_of(node) == 4 and all(same_extent(extent, 1) for extent in shape_of(node)[1:3])


def _spreads(vectors: Node, outputs: Any) -> Iterator[Node]:
    """What is `[N, 1, 1, O]` of vectors `[N, O]` by new shapes alone."""
    for user in vectors.users:
        if user.target not in (ATEN.reshape.default, ATEN.unsqueeze.default):
            continue
        if _is_pixel(user) and same_extent(shape_of(user)[CHANNELS], outputs):
            yield user
        else:
            yield from _spreads(user, outputs)
