"""Questions and edits that the lowering passes share. They see the functional (ATen) graph of the trained model."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from binarize.nn.geometry import ConvGeometry
from binarize.nn.ops import Terms, geometry_from_ints, is_absent

OPS = torch.ops.binarize
PACK = OPS.pack.default
PACKED_CONV = OPS.packed_conv2d.default
ACTIVATE = OPS.activate.default
ACTIVATE_LINK = OPS.activate_link.default
POOL = OPS.pool2d.default
PLACE = OPS.place.default
GATHER_CHANNELS = OPS.gather_channels.default
GATE = OPS.gate.default
PERMUTE = torch.ops.aten.permute.default
TO_NHWC = [0, 2, 3, 1]
TO_NCHW = [0, 3, 1, 2]

_EPILOGUE = ["slope", "shift", "next_threshold"]
ARGUMENTS = {
    PACKED_CONV: [
        *("bits", "weight", "scale", "bias", "link", "gamma", "residual", *_EPILOGUE),
        *("gate", "factor", "geometry", "terms"),
    ],
    ACTIVATE: ["x", "gate", "scale", "bias", "residual", *_EPILOGUE, "channels"],
    ACTIVATE_LINK: ["x", "gate", "scale", "bias", "residual", *_EPILOGUE, "gamma", "channels"],
}
"""Names of the arguments, in order, of the operators that end in an epilogue."""


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


def replace_constant(graph_module: GraphModule, node: Node, value: Tensor) -> None:
    """Let the `get_attr` node `node` have another value under its own name, by which a profile finds the layer."""
    path, _, name = str(node.target).rpartition(".")
    kept = nn.Parameter(value.detach().contiguous(), requires_grad=False)
    setattr(graph_module.get_submodule(path), name, kept)
    if isinstance(fake_value(node), Tensor):
        node.meta["val"] = fake_value(node).new_empty(kept.shape)


def fake_value(node: Node) -> Any:
    """The fake tensor that tells `node`'s shape, if recorded."""
    return node.meta.get("val")


def origin_of(node: Node) -> str | None:
    """The name of the node of the trained model's graph whose value `node` has, if one has it."""
    origin: str | None = node.meta.get("origin")
    return origin


def take_origin(node: Node, replaced: Node) -> None:
    """`node` now has the value of `replaced`, whose place it takes."""
    node.meta["origin"] = origin_of(replaced)


def drop_origin(node: Node) -> None:
    """`node` now has a value that the trained model has nowhere."""
    node.meta.pop("origin", None)


def permute(graph_module: GraphModule, node: Node, dims: list[int], before: Node) -> Node:
    """`node.permute(dims)`, inserted before `before`."""
    with graph_module.graph.inserting_before(before):
        call = graph_module.graph.call_function(PERMUTE, (node, dims))
    return set_value_like(call, node, lambda v: v.permute(dims))


def stream_of(node: Node) -> torch.dtype:
    """The element type of `node`'s map."""
    return node.meta.get("stream", torch.float32)  # type: ignore[no-any-return]


def set_value_like(node: Node, source: Node, function: Any) -> Node:
    """Record `function(source's fake value)` as `node`'s."""
    if fake_value(source) is not None:
        node.meta["val"] = function(fake_value(source))
    return node


def is_permute(node: Any, dims: list[int]) -> bool:
    """Whether `node` permutes with exactly `dims`."""
    return isinstance(node, Node) and node.target is PERMUTE and list(node.args[1]) == dims  # type: ignore


def is_item(node: Node, index: int) -> bool:
    """Whether `node` takes output `index` of a node that has several."""
    return node.target is operator.getitem and bool(node.args[1] == index)


def item_of(node: Node, index: int) -> Node | None:
    """The node that takes output `index` of `node`, if anyone does."""
    return next((user for user in node.users if is_item(user, index)), None)


def producer_of(value: Node) -> Fused | None:
    """The packed conv or activation whose floats `value` is."""
    if not is_item(value, 0):
        return None
    node = value.args[0]
    return Fused(node) if isinstance(node, Node) and node.target in ARGUMENTS else None


@dataclass(frozen=True)
class Fused:
    """The node of an operator with an epilogue, with its arguments by name."""

    node: Node

    def has(self, name: str) -> bool:
        """Whether this operator has an argument of that name."""
        return name in ARGUMENTS[self.node.target]  # type: ignore[index]

    def __getitem__(self, name: str) -> Any:
        return self.node.args[ARGUMENTS[self.node.target].index(name)]  # type: ignore[index]

    def update(self, **values: Any) -> None:
        for name, value in values.items():
            self.node.update_arg(ARGUMENTS[self.node.target].index(name), value)  # type: ignore[index]

    def value(self, name: str) -> Tensor:
        return constant(self[name])

    def absent(self, name: str) -> bool:
        """Whether `name` (`link`, `gate`, `factor` or `residual`) is its neutral element or not there."""
        tensor = tensor_of(self[name]) if self.has(name) else torch.zeros(1, 1, 1, 1)
        return tensor is not None and is_absent(tensor)

    @property
    def activated(self) -> bool:
        """Whether an activation or shift already closes the epilogue."""
        return bool(torch.any(self.value("slope") != 1)) or bool(torch.any(self.value("shift") != 0))


def set_constant(graph_module: GraphModule, fused: Fused, name: str, value: Tensor) -> None:
    """Give `fused` a float32 constant of its own for the argument `name`."""
    node = add_constant(graph_module, f"{fused.node.meta['layer']}_{name}", value.float(), fused.node)
    fused.update(**{name: node})


class PackedConv(Fused):
    """A packed conv's node with its arguments by name."""

    @property
    def geometry(self) -> ConvGeometry:
        return geometry_from_ints(self["geometry"])

    @property
    def terms(self) -> Terms:
        return Terms(*self["terms"])


def packed_convs(graph_module: GraphModule) -> list[PackedConv]:
    """Every packed conv in order of execution."""
    return [PackedConv(node) for node in graph_module.graph.nodes if node.target is PACKED_CONV]
