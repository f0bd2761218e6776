"""From a pickle's plain data to tensors, layers of known libraries, and the weights of all other modules.

A class or function of torch.nn, torchvision or timm is looked up where it is installed; objects are made without
calling their constructors, so nothing in a file chooses what runs. Any other class stays a `Record`, and if it is a
module, its parameters and buffers are read off it.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from binarize.loading.archives import Archive
from binarize.loading.names import from_library
from binarize.loading.opcodes import BadPickle, Name, Persistent, Record

_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
_SCRIPT = "__torch__."
_MAX_MODULES = 100_000


class ModuleWeights(dict[str, Tensor]):
    """The state dict of a pickled or scripted module whose class was not imported.

    Attributes:
        origin: that class, "module.Class".
        scripted: it was a TorchScript program.
    """

    def __init__(self, name: str, state: dict[str, Tensor]) -> None:
        super().__init__({key: value.detach() for key, value in state.items()})
        self.origin = re.sub(r"___torch_mangle_\d+\.", "", name.removeprefix(_SCRIPT))
        self.scripted = name.startswith(_SCRIPT)

    def __str__(self) -> str:
        return f"{'TorchScript program' if self.scripted else 'pickled'} {self.origin}"


class _Unknown(Exception):
    """A class that belongs to no known library."""


def restore(archive: Archive) -> Any:
    """The archive's value with tensors, modules of known libraries, and `ModuleWeights` for all other modules.

    Raises:
        ValueError, RuntimeError, TypeError and the like: the file is damaged.
    """
    return _Restorer(archive.lookup).value(archive.root)


class _Restorer:
    """Turns plain data into values; what is referred to twice stays one object."""

    def __init__(self, lookup: Callable[[Any], Tensor]) -> None:
        self.lookup = lookup
        self._done: dict[int, Any] = {}
        self._alive: list[Any] = []
        """What `_done` knows by its id, which another object could get after its end."""

    def value(self, plain: Any) -> Any:
        """A value outside of any module: unknown objects stay records, unknown modules become weights."""
        if isinstance(plain, Record) and _is_module(plain):
            return self._module(plain)
        if isinstance(plain, dict) or (isinstance(plain, Record) and plain.name == "collections.OrderedDict"):
            # Weights lie a few dictionaries deep; lists beside them hold training state, which nobody reads.
            return {key: self.value(item) for key, item in _plain_dict(plain).items() if item is not plain}
        try:
            return self.exact(plain)
        except _Unknown:
            return plain

    def _module(self, record: Record) -> Any:
        _check_size(record)
        try:
            return self.exact(record)
        except _Unknown:
            return ModuleWeights(record.name, dict(self.weights(record)))

    def exact(self, plain: Any) -> Any:
        """A value of known classes alone.

        Raises:
            _Unknown: a class or function in it is of no known library.
        """
        if not isinstance(plain, Record | Name | Persistent | dict | list | tuple | set | frozenset):
            return plain
        if id(plain) not in self._done:
            self._alive.append(plain)
            if isinstance(plain, dict):
                made: Any = {}
                self._done[id(plain)] = made
                made.update({key: self.exact(item) for key, item in plain.items()})
            elif isinstance(plain, list):
                made = self._done[id(plain)] = []
                made.extend(self.exact(item) for item in plain)
            elif isinstance(plain, tuple | set | frozenset):
                self._done[id(plain)] = type(plain)(self.exact(item) for item in plain)
            elif isinstance(plain, Persistent):
                self._done[id(plain)] = self.lookup(plain.id)
            elif isinstance(plain, Name):
                self._done[id(plain)] = _known(plain.name)
            else:
                self._done[id(plain)] = self._object(plain)
        return self._done[id(plain)]

    def _object(self, record: Record) -> Any:
        if record.name in _TENSORS:
            return _TENSORS[record.name](*[self.exact(item) for item in record.args])
        if record.name in _CALLS:
            return self._called(record, _CALLS[record.name])
        known: Any = _known(record.name)
        if not isinstance(known, type):
            raise _Unknown(record.name)
        if record.args or record.items or record.values:
            raise _Unknown(record.name)  # made by a call of its constructor, which is not ours to make
        made: Any = known.__new__(known)  # type: ignore[call-overload]
        self._done[id(record)] = made
        state = self.exact(_without_hooks(record.state) if isinstance(made, nn.Module) else record.state)
        if isinstance(made, nn.Module):
            _fill_module(made, state)
        elif isinstance(state, dict):
            made.__dict__.update(state)
        return made

    def _called(self, record: Record, call: Callable[..., Any]) -> Any:
        made = call(*[self.exact(item) for item in record.args])
        self._done[id(record)] = made
        if isinstance(made, dict):
            made.update({key: self.exact(item) for key, item in record.items})
        elif isinstance(made, set):
            made.update(self.exact(item) for item in record.values)
        elif isinstance(made, functools.partial):
            _, args, keywords, _ = self.exact(record.state)
            made = functools.partial(made.func, *args, **(keywords or {}))
        return made

    def weights(self, record: Record, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers of a module and its children, with their state-dict names."""
        state = record.state
        skipped = _plain_set(state.get("_non_persistent_buffers_set"))
        own = state if _is_script(record) else {**_plain_dict(state["_parameters"]), **_plain_dict(state["_buffers"])}
        for name, item in own.items():
            is_tensor = isinstance(item, Persistent) or (isinstance(item, Record) and item.name in _TENSORS)
            if is_tensor and name not in skipped:
                yield prefix + name, self.exact(item)
        for name, child in _children(record):
            yield from self.weights(child, f"{prefix}{name}.")


def _fill_module(module: nn.Module, state: Any) -> None:
    """Give a bare module its attributes."""
    if not isinstance(state, dict) or not {"_parameters", "_buffers", "_modules"} <= state.keys():
        raise ValueError("a module without parameters, buffers and children")
    if not all(isinstance(child, nn.Module | None) for child in state["_modules"].values()):
        raise ValueError("a module whose children are no modules")
    module.__setstate__(state)


def _without_hooks(state: Any) -> Any:
    """A module's attributes with empty tables of hooks: those are code of whoever trained it, not of the model."""
    if not isinstance(state, dict):
        return state
    return {name: OrderedDict() if str(name).endswith(_HOOKS) else item for name, item in state.items()}


def _known(name: str) -> Any:
    """The class, function or constant of a known library with this name.

    Raises:
        _Unknown: there is none.
    """
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if name.startswith("torch.") and isinstance(
        dtype := getattr(torch, name.removeprefix("torch."), None), torch.dtype
    ):
        return dtype
    if not from_library(name):
        raise _Unknown(name)
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise _Unknown(name) from error
    if not from_library(f"{getattr(found, '__module__', '')}."):
        raise _Unknown(name)  # something that the library itself imported from elsewhere
    return found


def _is_module(record: Record) -> bool:
    return isinstance(record.state, dict) and (_is_script(record) or {"_parameters", "_modules"} <= record.state.keys())


def _children(record: Record) -> list[tuple[str, Record]]:
    children = record.state if _is_script(record) else _plain_dict(record.state["_modules"])
    return [(name, child) for name, child in children.items() if isinstance(child, Record) and _is_module(child)]


def _check_size(module: Record) -> None:
    """Refuse modules that contain themselves, or that share children so often that their names never end."""
    paths: dict[int, int] = {}

    def count(record: Record, above: frozenset[int]) -> int:
        if id(record) in above:
            raise BadPickle("a module that contains itself")
        if id(record) not in paths:
            below = above | {id(record)}
            paths[id(record)] = 1 + sum(count(child, below) for _, child in _children(record))
        return paths[id(record)]

    if count(module, frozenset()) > _MAX_MODULES:
        raise BadPickle(f"more than {_MAX_MODULES} modules")


def _is_script(record: Record) -> bool:
    return record.name.startswith(_SCRIPT)


def _pairs(record: Record) -> list[tuple[Any, Any]]:
    """Keys and values of a pickled OrderedDict, in the ways of old and new pickles."""
    return [*(tuple(pair) for pair in (record.args[0] if record.args else ())), *record.items]  # type: ignore[misc]


def _plain_dict(value: Any) -> dict[Any, Any]:
    return dict(_pairs(value)) if isinstance(value, Record) else value


def _plain_set(value: Any) -> set[Any]:
    if isinstance(value, Record):
        return {*(value.args[0] if value.args else ()), *value.values}
    return value or set()


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: Tensor, requires_grad: bool = True, *_: Any) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=bool(requires_grad) and data.is_floating_point())


_TENSORS: dict[str, Callable[..., Tensor]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
}
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda *pairs: OrderedDict(*pairs),
    "builtins.set": lambda *values: set(*values),
    "__builtin__.set": lambda *values: set(*values),
    "torch.Size": lambda *sizes: torch.Size(*sizes),
    "torch.device": torch.device,
    "functools.partial": functools.partial,
}
_CONSTANTS: dict[str, Any] = {"builtins.set": set, "builtins.object": object}
