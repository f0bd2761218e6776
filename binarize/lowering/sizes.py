"""For which sizes of maps a trace holds.

A trace takes one way through the model's code, that of its example. What the code asked about sizes on that way stays
known, as guards of the trace, and tells which other sizes would have led elsewhere.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from binarize.lowering.functional import Shapes

Values = dict[sympy.Symbol, int]
"""What stands for each extent that a trace leaves free."""


def any_sizes(example_inputs: tuple[Tensor, ...]) -> Shapes:
    """Every dimension but the channels may differ where the model lets it."""
    return tuple({d: torch.export.Dim.AUTO for d in range(x.dim()) if d != 1} for x in example_inputs)


def any_batches(example_inputs: tuple[Tensor, ...]) -> Shapes:
    """The batch of each input may differ where the model lets it."""
    return tuple({0: torch.export.Dim.AUTO} if x.dim() else {} for x in example_inputs)


def has_free_sizes(traced: GraphModule) -> bool:
    """Whether `traced` takes maps of more than one size."""
    return any(not isinstance(extent, int) for value in _inputs_of(traced) for extent in value.shape[1:])


def of_other_sizes(traced: GraphModule, example_inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Inputs like `example_inputs`, the extents of their maps changed where `traced` leaves them free."""
    known = _values(traced, example_inputs)
    inputs = _inputs_of(traced)
    batches = {_formula(value.shape[0]) for value in inputs if value.dim()}
    free = [symbol for symbol in known or () if symbol not in batches]
    for change in _CHANGES:
        values = {**(known or {}), **{s: max(change((known or {})[s], i), 1) for i, s in enumerate(free)}}
        shapes = [[int(_formula(extent).xreplace(_numbers(values))) for extent in value.shape] for value in inputs]
        yield tuple(_tiled(x, shape) for x, shape in zip(example_inputs, shapes, strict=True))


def _plus(even: int, odd: int) -> Callable[[int, int], int]:
    return lambda extent, place: extent + (odd if place % 2 else even)


_CHANGES: tuple[Callable[[int, int], int], ...] = (
    _plus(5, 3),
    _plus(1, 2),
    _plus(2, 1),
    _plus(4, 6),
    _plus(7, 8),
    _plus(9, 5),
    lambda extent, _: extent * 3 // 2,
    lambda extent, _: extent * 2,
    lambda extent, _: extent * 3,
    lambda extent, _: extent // 2,
)
"""Ways to another extent, given the number of the dimension among the free ones: of the other parity and remainder
first, then such that code which halves maps, or takes several that belong together, goes along."""


def turned_decisions(traced: GraphModule, inputs: tuple[Tensor, ...]) -> frozenset[int] | None:
    """The numbers of the guards that do not hold for `inputs`; None where these are no inputs of `traced` at all."""
    values = _values(traced, inputs)
    if values is None:
        return None
    guards = [(environment, guard.expr) for environment in _environments(traced) for guard in environment.guards]
    numbers = _numbers(values)
    holds = [environment.replace(expression).xreplace(numbers) is sympy.true for environment, expression in guards]
    return frozenset(number for number, held in enumerate(holds) if not held)


def same_program(one: GraphModule, other: GraphModule) -> bool:
    """Whether two traces do the same with the same constants."""
    if _described(one) != _described(other):
        return False
    constants = [node.target for node in one.graph.find_nodes(op="get_attr")]
    pairs = [[operator.attrgetter(name)(traced) for traced in (one, other)] for name in constants]
    return all(torch.equal(left, right) for left, right in pairs if isinstance(left, Tensor))


def _described(traced: GraphModule) -> list[str]:
    return [f"{n.op} {n.name} {n.target} {n.args} {n.kwargs}" for n in traced.graph.nodes]


def _inputs_of(traced: GraphModule) -> list[Tensor]:
    nodes: list[Node] = traced.graph.find_nodes(op="placeholder")
    return [node.meta["val"] for node in nodes]


def _environments(traced: GraphModule) -> list[Any]:
    """What knows the guards; there is one, if any size is free."""
    shapes: list[Any] = [value.shape for value in _inputs_of(traced)]
    extents = [extent for shape in shapes for extent in shape if not isinstance(extent, int)]
    return list({id(extent.node.shape_env): extent.node.shape_env for extent in extents}.values())


def _formula(extent: Any) -> Any:
    return sympy.Integer(extent) if isinstance(extent, int) else extent.node.expr


def _numbers(values: Values) -> dict[sympy.Symbol, sympy.Integer]:
    return {symbol: sympy.Integer(value) for symbol, value in values.items()}


def _values(traced: GraphModule, inputs: tuple[Tensor, ...]) -> Values | None:
    """What `inputs` have for each free extent; None where an extent is not what the trace says it is."""
    pairs = [
        (_formula(extent), size)
        for value, x in zip(_inputs_of(traced), inputs, strict=True)
        for extent, size in zip(value.shape, x.shape, strict=True)
    ]
    values = {formula: size for formula, size in pairs if formula.is_Symbol}
    fits = all(formula.xreplace(_numbers(values)) == size for formula, size in pairs)
    return values if fits else None


def _tiled(x: Tensor, shape: list[int]) -> Tensor:
    """The values of `x` over and over: what they mean, indices say, stays what it was."""
    for axis, extent in enumerate(shape):
        x = x.index_select(axis, torch.arange(extent) % x.shape[axis])
    return x
