"""Recording: the dataflow of one run of a whole model, whatever its code does, as a graph that is only read.

Symbolic tracing stops at data-dependent code; a run does not. So facts about the whole model (which conv is first,
what a gate multiplies, where a sign is met) are read off what ran: one fx node per leaf module and per torch function.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

_CONSTANTS = (int, float, bool, str, type(None), torch.dtype, torch.device)


class Recording:
    """An fx graph of what ran.

    A node's meta holds `shape` (of a single tensor result), `path` and `module` (of a leaf module), `region_node`
    (the node of a captured region that it is a run of). Results that are no floats end the flow.
    """

    def __init__(self, model: nn.Module) -> None:
        self.graph = Graph()
        self.watching = False
        self._sources = WeakTensorKeyDictionary()
        self._names = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
        self._region_nodes: dict[Node, list[Node]] = {}

    def of(self, region_node: Node) -> list[Node]:
        """The runs of a region's node, one per call of the region."""
        return self._region_nodes.get(region_node, [])

    def goes_on(self, before: Node, after: Node) -> None:
        """The region's node `after` gives from now on what the runs of `before` gave."""
        self._region_nodes[after] = self._region_nodes.pop(before, [])

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Record every torch function that is called inside, but for stretches that are `quiet`."""
        self.watching = True
        try:
            with _Watch(self):
                yield
        finally:
            self.watching = False

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Record nothing by itself inside: the caller records the stretch as one node."""
        before, self.watching = self.watching, False
        try:
            yield
        finally:
            self.watching = before

    def add_function(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        """A call of a torch function or of a tensor's method."""
        name = getattr(function, "__name__", "")
        op, target = "call_function", function
        if isinstance(function, types.MethodDescriptorType):
            op, target = "call_method", name
        elif isinstance(function, types.WrapperDescriptorType):
            target = getattr(operator, name, function)
        node = self._add(op, target, args, kwargs, result)
        if node is None:
            return
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            self._changed(args[0], node)

    def add_module(self, path: str, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        """A call of a leaf module."""
        node = self._add("call_module", path, args, kwargs, result)
        if node is not None:
            node.meta |= {"path": path, "module": module}

    def add_region_node(self, region_node: Node, args: Any, kwargs: Any, result: Any) -> None:
        """A run of a captured region's node."""
        target = region_node.meta.get("path", region_node.target)
        node = self._add(region_node.op, target, args, kwargs, result)
        if node is None:
            return
        node.meta["region_node"] = region_node
        if region_node.op == "call_module":
            owner = region_node.graph.owning_module
            assert owner is not None
            node.meta |= {"path": target, "module": owner.get_submodule(str(region_node.target))}
        self._region_nodes.setdefault(region_node, []).append(node)

    def mark(self) -> int:
        """The number of nodes so far, for `forget`."""
        return len(self.graph.nodes)

    def forget(self, mark: int) -> None:
        """Drop what was recorded after `mark`."""
        for node in reversed(list(self.graph.nodes)[mark:]):
            self.graph.erase_node(node)
            self._region_nodes.pop(node.meta.get("region_node"), None)  # type: ignore[call-overload]

    def _add(self, op: str, target: Any, args: Any, kwargs: Any, result: Any) -> Node | None:
        """The new node; None if no tensor is involved, as where a size is asked for."""
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        if not made and result is not None:
            return None
        node = self.graph.create_node(op, target, tuple(self._argument(args)), self._argument(kwargs))
        for tensor in made:
            if tensor.is_floating_point():
                self._sources[tensor] = node
        if isinstance(result, Tensor):
            node.meta["shape"] = tuple(result.shape)
        return node

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._source(value)
        if isinstance(value, tuple | list):
            return [self._argument(v) for v in value]
        if isinstance(value, dict):
            return {str(k): self._argument(v) for k, v in value.items()}
        return value if isinstance(value, _CONSTANTS) else None

    def _source(self, tensor: Tensor) -> Node | None:
        """Where `tensor` comes from; a new source for one that was not made by anything recorded."""
        if not tensor.is_floating_point():
            return None
        node: Node | None = self._sources.get(tensor)
        if node is None:
            name = self._names.get(id(tensor))
            node = self.graph.placeholder("input") if name is None else self.graph.create_node("get_attr", name)
            node.meta["shape"] = tuple(tensor.shape)
            self._sources[tensor] = node
        return node

    def _changed(self, tensor: Any, node: Node) -> None:
        """`tensor`, and what it is a view of, was changed by `node`."""
        if isinstance(tensor, Tensor):
            self._sources[tensor] = node
            if tensor._base is not None:
                self._sources[tensor._base] = node


class _Watch(TorchFunctionMode):
    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.recording.watching:
            with self.recording.quiet():
                self.recording.add_function(func, args, kwargs or {}, result)
        return result
