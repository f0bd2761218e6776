"""Changes that no gradient proposes: bits of kernels (GBCN) and edges between channels (CI-Net).

A search proposes a change of one layer; the trainer keeps it if the loss on the current batch falls, else undoes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from binarize.nn import BinaryConv
from binarize.nn.sign import hard_sign

Undo = Callable[[], None]


class Search(Protocol):
    """Proposes one change at a time."""

    margin: float
    """Share of the loss by which it must fall."""

    def propose(self, module: nn.Module, generator: torch.Generator) -> Undo | None:
        """Change a layer of `module` in place; how to undo it, or None if there is nothing to change."""
        ...


class GeneticSearch:
    """Balanced crossover and mutation of binary kernels; the better of parent and child survives.

    For a few kernels of one conv: the child takes bits of a mate where the two differ, then some bits flip; both keep
    the number of +1 bits. A latent weight that flips keeps its size, so the gradient goes on from the winner.

    Source: GBCN (Liu et al., 2019, arXiv 1911.11634), whose operators are known from secondary sources only.

    Args:
        kernels: how many change per proposal.
        mutation: share of a kernel's bits that flip.
    """

    margin = 0.0

    def __init__(self, kernels: int = 8, mutation: float = 0.02) -> None:
        self.kernels, self.mutation = kernels, mutation

    @torch.no_grad()
    def propose(self, module: nn.Module, generator: torch.Generator) -> Undo | None:
        convs = [m for m in module.modules() if isinstance(m, BinaryConv)]
        if not convs:
            return None
        weight = convs[_draw(len(convs), generator)].weight
        rows = torch.randperm(len(weight), generator=generator)[: self.kernels].tolist()
        old = weight[rows].clone()
        for row in rows:
            mate = weight[_draw(len(weight), generator)]
            child = weight[row].flatten()
            child = self._cross(child, mate.flatten(), generator)
            weight[row] = self._mutate(child, generator).view_as(weight[row])

        def undo() -> None:
            with torch.no_grad():
                weight[rows] = old

        return undo

    def _cross(self, child: Tensor, mate: Tensor, generator: torch.Generator) -> Tensor:
        """Half of the bits in which child and mate differ change to the mate's, as many up as down."""
        signs, others = hard_sign(child), hard_sign(mate)
        up = torch.nonzero((signs < 0) & (others > 0)).flatten()
        down = torch.nonzero((signs > 0) & (others < 0)).flatten()
        return _flipped(child, up, down, min(len(up), len(down)) // 2, generator)

    def _mutate(self, child: Tensor, generator: torch.Generator) -> Tensor:
        signs = hard_sign(child)
        up, down = torch.nonzero(signs < 0).flatten(), torch.nonzero(signs > 0).flatten()
        count = min(len(up), len(down), max(1, round(self.mutation * len(child) / 2)))
        return _flipped(child, up, down, count, generator)


def _flipped(kernel: Tensor, up: Tensor, down: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`kernel` with the signs of `count` random elements of `up` and as many of `down` reversed."""
    chosen = [
        places[torch.randperm(len(places), generator=generator)[:count].to(places.device)] for places in (up, down)
    ]
    result = kernel.clone()
    for places in chosen:
        result[places] = -result[places]
    # -0.0 and 0.0 have the same sign bit for us; a weight of 0 that should be +1 becomes the smallest positive one.
    raised = chosen[0]
    result[raised] = result[raised].clamp_min(torch.finfo(kernel.dtype).tiny)
    return result


class InteractionSearch:
    """Adds, redirects or removes one edge between two channels of a conv.

    The paper mines the edges with a reinforcement-learned policy whose reward is the change of the loss; here the
    proposals are random and the same reward decides at once.

    Source: CI-BCNN (Wang et al., CVPR 2019), section 3.3.
    """

    margin = 1e-3

    @torch.no_grad()
    def propose(self, module: nn.Module, generator: torch.Generator) -> Undo | None:
        layers = [m.interaction for m in module.modules() if isinstance(m, BinaryConv) and m.interaction is not None]
        layer = layers[_draw(len(layers), generator)] if layers else None
        if layer is None or layer.channels < 2:
            return None
        buffers = (layer.source, layer.target, layer.sign)
        old = [buffer.clone() for buffer in buffers]
        slot = _draw(len(layer.sign), generator)
        others = torch.nonzero(layer.sign).flatten().tolist()
        others = [k for k in others if k != slot]
        sources, targets = ({int(buffer[k]) for k in others} for buffer in buffers[:2])
        remove = bool(layer.sign[slot]) and _draw(3, generator) == 0
        free_sources = [c for c in range(layer.channels) if c not in targets]
        source = free_sources[_draw(len(free_sources), generator)] if free_sources else -1
        free_targets = [c for c in range(layer.channels) if c not in sources and c != source]
        if not remove and (source < 0 or not free_targets):
            return None
        target = free_targets[_draw(len(free_targets), generator)] if free_targets else 0
        edge = (0, 0, 0) if remove else (source, target, 2 * _draw(2, generator) - 1)
        for buffer, value in zip(buffers, edge, strict=True):
            buffer[slot] = value

        def undo() -> None:
            for buffer, values in zip(buffers, old, strict=True):
                buffer.copy_(values)

        return undo


def make_search(name: str) -> Search | None:
    """The search that a stage names."""
    searches: dict[str, Callable[[], Search]] = {"genetic": GeneticSearch, "interactions": InteractionSearch}
    return searches[name]() if name in searches else None


def survives(search: Search, module: nn.Module, loss: Callable[[], float], generator: torch.Generator) -> bool:
    """Propose a change of `module` and keep it if `loss()`, of the module in training mode, falls by the margin."""
    with _statistics_kept(module), torch.no_grad():
        before = loss()
    undo = search.propose(module, generator)
    if undo is None:
        return False
    with _statistics_kept(module), torch.no_grad():
        better = loss() < before * (1 - search.margin)
    if not better:
        undo()
    return better


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Running statistics survive the block unchanged, and so do the random generators."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with torch.random.fork_rng():
        yield
    for buffer, old in buffers:
        buffer.copy_(old)


def _draw(count: int, generator: torch.Generator) -> int:
    """A random number below `count`."""
    return int(torch.randint(count, (1,), generator=generator))
