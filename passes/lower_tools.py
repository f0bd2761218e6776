"""Questions and edits that the lowering passes share. They see the functional (ATen) graph of the trained model."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from binarize.nn.geometry import ConvGeometry
from binarize.nn.ops import geometry_from_ints, is_absent

OPS = torch.ops.binarize
PACK = OPS.pack.default
PACKED_CONV = OPS.packed_conv2d.default
PERMUTE = torch.ops.aten.permute.default
TO_NHWC = [0, 2, 3, 1]
TO_NCHW = [0, 3, 1, 2]

ARGUMENTS = [
    "bits",
    "weight",
    "scale",
    "bias",
    "link",
    "gamma",
    "residual",
    "slope",
    "shift",
    "next_threshold",
    "geometry",
]
"""Names of a packed conv's arguments, in order."""


def tensor_of(node: Node) -> Tensor | None:
    """The constant behind a `get_attr` node, else None."""
    if node.op != "get_attr":
        return None
    value: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, Tensor) else None


def constant(node: Node) -> Tensor:
    """Like `tensor_of`, for a node that must be a constant."""
    value = tensor_of(node)
    assert value is not None, f"{node} is not a constant"
    return value


def add_constant(graph_module: GraphModule, name: str, value: Tensor, before: Node) -> Node:
    """A new `get_attr` node before `before`, for a buffer called `name` (made unique)."""
    unique, number = name, 1
    while hasattr(graph_module, unique):
        number += 1
        unique = f"{name}_{number}"
    graph_module.register_buffer(unique, value.detach().contiguous())
    with graph_module.graph.inserting_before(before):
        return graph_module.graph.get_attr(unique)


def fake_value(node: Node) -> Any:
    """The fake tensor that tells `node`'s shape, if recorded."""
    return node.meta.get("val")


def permute(graph_module: GraphModule, node: Node, dims: list[int], before: Node) -> Node:
    """`node.permute(dims)`, inserted before `before`."""
    with graph_module.graph.inserting_before(before):
        call = graph_module.graph.call_function(PERMUTE, (node, dims))
    return set_value_like(call, node, lambda v: v.permute(dims))


def set_value_like(node: Node, source: Node, function: Any) -> Node:
    """Record `function(source's fake value)` as `node`'s."""
    if fake_value(source) is not None:
        node.meta["val"] = function(fake_value(source))
    return node


def is_permute(node: Any, dims: list[int]) -> bool:
    """Whether `node` permutes with exactly `dims`."""
    return isinstance(node, Node) and node.target is PERMUTE and list(node.args[1]) == dims  # type: ignore


def is_item(node: Node, index: int) -> bool:
    """Whether `node` takes output `index` of a packed conv."""
    return node.target is operator.getitem and bool(node.args[1] == index)


def item_of(conv: Node, index: int) -> Node | None:
    """The node that takes output `index` of `conv`, if anyone does."""
    return next((user for user in conv.users if is_item(user, index)), None)


@dataclass(frozen=True)
class PackedConv:
    """A packed conv's node with its arguments by name."""

    node: Node

    def __getitem__(self, name: str) -> Any:
        return self.node.args[ARGUMENTS.index(name)]

    def update(self, **values: Any) -> None:
        for name, value in values.items():
            self.node.update_arg(ARGUMENTS.index(name), value)

    def value(self, name: str) -> Tensor:
        return constant(self[name])

    @property
    def geometry(self) -> ConvGeometry:
        return geometry_from_ints(self["geometry"])

    def absent(self, name: str) -> bool:
        """Whether the optional input `name` (`link` or `residual`) is its neutral element."""
        tensor = tensor_of(self[name])
        return tensor is not None and is_absent(tensor)

    @property
    def activated(self) -> bool:
        """Whether an activation or shift already closes the epilogue."""
        return bool(torch.any(self.value("slope") != 1)) or bool(torch.any(self.value("shift") != 0))


def packed_convs(graph_module: GraphModule) -> list[PackedConv]:
    """Every packed conv in order of execution."""
    return [PackedConv(node) for node in graph_module.graph.nodes if node.target is PACKED_CONV]
