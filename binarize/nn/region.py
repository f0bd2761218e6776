"""What the traceable part of a model is after surgery: a module that runs an fx graph."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.fx import GraphModule
from torch.fx.graph_module import reduce_graph_module

from binarize.nn.modules import hooks_of


class Region(GraphModule):
    """A `GraphModule` that keeps, copied and pickled too, also what its graph does not use: auxiliary heads, say."""

    def become(self, module: nn.Module) -> None:
        """Turn the object `module` into this region, with its hooks and plain attributes kept."""
        module.__class__ = type(self)
        object.__setattr__(module, "__dict__", vars(module) | vars(self) | hooks_of(module))
        assert isinstance(module, Region)
        module.graph.owning_module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> Region:
        twin = _empty(type(self).__name__)
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy({k: v for k, v in vars(self).items() if k != "_graph"}, memo))
        twin.graph = copy.deepcopy(self.graph, memo)
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        _, arguments = super().__reduce__()
        return _rebuild, (type(self).__name__, *arguments)


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


class TrainingFlag(nn.Module):
    """Tells functions inside a graph whether it runs in train mode, as `self.training` does in a `forward`."""

    def forward(self) -> bool:
        return self.training
