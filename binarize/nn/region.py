"""What the traceable part of a model is after surgery: a module that runs an fx graph."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.fx import GraphModule
from torch.fx.graph_module import reduce_graph_module

from binarize.nn.modules import hooks_of

_METHODS = (types.FunctionType, classmethod, staticmethod)


class Region(GraphModule):
    """A `GraphModule` that keeps, copied and pickled too, also what its graph does not use: auxiliary heads, say.

    Constants and properties of its module's class stay, as code around it may ask for them (not so once pickled).
    Methods do not: one that calls layers would miss what surgery put between them.
    """

    altered: bool = False
    """Whether surgery changed anything in it."""

    def become(self, module: nn.Module) -> None:
        """Turn the object `module` into this region, with its hooks and plain attributes kept."""
        own = {"_origin": type(module)}
        _lend(type(module), type(self))
        module.__class__ = type(self)
        object.__setattr__(module, "__dict__", vars(module) | vars(self) | hooks_of(module) | own)
        assert isinstance(module, Region)
        module.graph.owning_module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> Region:
        twin = _empty(type(self).__name__)
        if (origin := vars(self).get("_origin")) is not None:
            _lend(origin, type(twin))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy({k: v for k, v in vars(self).items() if k != "_graph"}, memo))
        twin.graph = copy.deepcopy(self.graph, memo)
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        _, (body, imports) = super().__reduce__()
        body.pop("_origin", None)  # a class that need not be importable
        return _rebuild, (type(self).__name__, body, imports)


def _lend(origin: type, to: type) -> None:
    """Give the class `to` the constants and properties of `origin`."""
    for cls in reversed(origin.__mro__):
        for name, value in vars(cls).items():
            if not (name.startswith("__") or hasattr(Region, name) or isinstance(value, _METHODS)):
                setattr(to, name, value)


def _empty(name: str) -> Region:
    """A region without anything; each is of a class of its own, which is called like the module it stands for."""
    region = Region.__new__(Region)
    type(region).__name__ = name
    return region


def _rebuild(name: str, body: dict[str, Any], imports: str) -> Region:
    graph = reduce_graph_module(dict(body), imports).graph
    region = _empty(name)
    vars(region).update(body)
    region.graph = graph  # type: ignore[assignment]
    return region


class LayerList(nn.Module):
    """The layers of a list of the original (`nn.Sequential`, `nn.ModuleList`) in a region, by the same indices.

    Surgery puts layers between them, which have no index; an activation that it replaced is reached by the old one's.
    """

    names: tuple[str, ...]
    """What the original calls its layers, in order."""

    @staticmethod
    def stand_in(holder: nn.Module, original: nn.Module) -> None:
        """Make the plain module `holder` the list that `original` is."""
        holder.__class__ = LayerList
        vars(holder)["names"] = tuple(original._modules)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[nn.Module]:
        return (self._layer(name) for name in self.names)

    def __getitem__(self, index: int | slice) -> nn.Module | list[nn.Module]:
        if isinstance(index, slice):
            return [self._layer(name) for name in self.names[index]]
        return self._layer(self.names[index])

    def _layer(self, name: str) -> nn.Module:
        layer = self._modules.get(name)
        if layer is None:
            layer = next((m for n, m in self._modules.items() if n.startswith(f"{name}_")), None)
        if layer is None:
            raise IndexError(f"layer {name!r} of the original is not in the binary model: nothing is left for it to do")
        return layer


class TrainingFlag(nn.Module):
    """Tells functions inside a graph whether it runs in train mode, as `self.training` does in a `forward`."""

    def forward(self) -> bool:
        return self.training
