"""Small questions and edits that several passes share."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import networkx as nx
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.nn.modules.conv import _ConvNd

from binarize.nn.functional import to_map, to_rows

ADD_TARGETS = {operator.add, operator.iadd, torch.add, "add", "add_"}
"""Every spelling of an addition in a module-level graph."""

CONV_FUNCTIONS = {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}

MUL_TARGETS = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_"}

DIV_TARGETS = {operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_", "true_divide"}

ACTIVATION_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
    nn.Hardtanh,
)
ACTIVATION_FUNCTIONS = {
    F.relu,
    F.relu_,
    F.relu6,
    F.leaky_relu,
    F.elu,
    F.gelu,
    F.silu,
    F.mish,
    F.hardswish,
    F.softplus,
    F.hardtanh,
    torch.relu,
    torch.relu_,
    torch.clamp,
    "relu",
    "relu_",
    "clamp",
    "clamp_",
}
NO_FLOW = {"detach", torch.detach, "size", "dim", "numel", getattr}
"""What these give holds no features."""

LAYOUT_CHANGES = {torch.permute, torch.transpose, "permute", "transpose", "view", "reshape", "unflatten", to_rows}


def moves_channels(node: Node) -> bool:
    """Whether behind `node` dimension 1 need not be the channels any more."""
    if calls_function(node, {to_map}):
        return len(shape_of(node.all_input_nodes[0]) or ()) > 2
    return calls_function(node, LAYOUT_CHANGES)


GATE_MODULES: tuple[type[nn.Module], ...] = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softmax2d)
GATE_FUNCTIONS = {F.sigmoid, F.hardsigmoid, F.softmax, torch.sigmoid, torch.softmax, "sigmoid", "softmax"}


def module_of(node: Node) -> nn.Module | None:
    """The module a `call_module` node calls, else None."""
    if node.op != "call_module":
        return None
    if "module" in node.meta:
        recorded: nn.Module = node.meta["module"]
        return recorded
    owner = node.graph.owning_module
    assert owner is not None
    return owner.get_submodule(str(node.target))


def path_of(node: Node) -> str:
    """The path, in the whole model, of the module that a `call_module` node calls."""
    return str(node.meta.get("path", node.target))


def calls_module(node: Node, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> bool:
    """Whether `node` calls a module of one of `kinds`."""
    return isinstance(module_of(node), kinds)


def calls_function(node: Node, targets: set[Any]) -> bool:
    """Whether `node` calls one of `targets`, as a function or as a method."""
    return node.op in ("call_function", "call_method") and node.target in targets


def is_activation(node: Node) -> bool:
    """Whether `node` is a ReLU-like activation in any spelling."""
    return calls_module(node, ACTIVATION_MODULES) or calls_function(node, ACTIVATION_FUNCTIONS)


def is_gate_function(node: Node) -> bool:
    """Whether `node` is a sigmoid, hard sigmoid or softmax."""
    return calls_module(node, GATE_MODULES) or calls_function(node, GATE_FUNCTIONS)


def is_conv(node: Node) -> bool:
    """Whether `node` is a convolution in any spelling."""
    return calls_module(node, _ConvNd) or calls_function(node, CONV_FUNCTIONS)


def is_weighted(node: Node) -> bool:
    """Whether `node` is a convolution or a linear layer in any spelling."""
    return is_conv(node) or calls_module(node, nn.Linear) or calls_function(node, {F.linear})


def shape_of(node: Node) -> tuple[int, ...] | None:
    """The recorded shape of `node`'s value, or None if it is not a tensor."""
    return node.meta.get("shape")


def dataflow(graph: Graph) -> nx.DiGraph:
    """Edges between `graph`'s nodes along which features flow."""
    flow = nx.DiGraph()
    flow.add_nodes_from(graph.nodes)
    sources = (node for node in graph.nodes if node.op != "get_attr" and not calls_function(node, NO_FLOW))
    flow.add_edges_from((source, user) for source in sources for user in source.users)
    return flow


def walk_forward(start: Node, through: Callable[[Node], bool]) -> Iterator[Node]:
    """Every node that `start`'s value reaches; the walk goes on past a node only if `through` says so."""
    seen: set[Node] = set()
    stack = list(start.users)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if through(node):
            stack.extend(node.users)


def add_module(graph_module: GraphModule, path: str, module: nn.Module) -> str:
    """Register `module` at `path`, or at `path_2`, `path_3`, ... if that is taken; returns where."""
    name, number = path, 1
    while _has(graph_module, name):
        number += 1
        name = f"{path}_{number}"
    graph_module.add_submodule(name, module)
    return name


def _has(module: nn.Module, path: str) -> bool:
    try:
        operator.attrgetter(path)(module)
    except AttributeError:
        return False
    return True


def insert_module_call(graph_module: GraphModule, after: Node, path: str, argument: Node) -> Node:
    """A call of the module at `path` on `argument`, placed right after `after`; shape metadata is carried over."""
    with graph_module.graph.inserting_after(after):
        node = graph_module.graph.call_module(path, (argument,))
    if "shape" in argument.meta:
        node.meta["shape"] = argument.meta["shape"]
    return node
