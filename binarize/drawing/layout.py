"""Where boxes go: rows by the longest way from the input, the same row for the same layer of both graphs, and lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

from binarize.drawing.sketch import Box, Sketch

HEIGHT = {"layer": 36, "step": 18, "join": 20, "end": 20}
GAP = 13


@dataclass(frozen=True)
class Place:
    """Top edge in pixels, and lane from the left."""

    top: float
    lane: int

    def bottom(self, box: Box) -> float:
        return self.top + HEIGHT[box.role]


def place(sketches: Sequence[Sketch]) -> list[dict[Box, Place]]:
    """A place for every box of every sketch; layers of one key stand in one row where the orders agree."""
    tops = _tops(sketches)
    return [_lanes(made, tops) for made in sketches]


def _tops(sketches: Sequence[Sketch]) -> dict[Box, float]:
    """Top edges: the longest way from the inputs, on the graph in which equal layers of the sketches are one."""
    together = nx.DiGraph()
    for index, made in enumerate(sketches):
        together.add_nodes_from(_row(box, index) for box in made.boxes)
        together.add_weighted_edges_from(
            (_row(a, index), _row(b, index), HEIGHT[a.role] + GAP) for a, b in made.flow.edges
        )
    if not nx.is_directed_acyclic_graph(together):
        return {box: top for made in sketches for box, top in _tops([made]).items()}
    tops: dict[object, float] = {}
    for row in nx.topological_sort(together):
        before = ((tops[p] + together.edges[p, row]["weight"]) for p in together.predecessors(row))
        tops[row] = max(before, default=0.0)
    return {box: tops[_row(box, index)] for index, made in enumerate(sketches) for box in made.boxes}


def _row(box: Box, index: int) -> tuple[str, int]:
    return (box.key, -1 if box.role == "layer" else index)


def _lanes(made: Sketch, tops: dict[Box, float]) -> dict[Box, Place]:
    """The longest way goes straight down; each branch takes the first lane that is free from its fork to its join."""
    flow = made.flow
    order = list(flow)  # of execution, in which equal branches of two graphs get equal lanes
    below: dict[Box, float] = {}
    for box in reversed(order):
        below[box] = max((below[b] + 1 for b in flow.successors(box)), default=0)
    heir = {box: max(flow.successors(box), key=lambda b: below[b], default=None) for box in order}
    lanes: dict[Box, int] = {}
    busy: list[float] = []
    for box in order:
        before = [b for b in flow.predecessors(box) if not flow.edges[b, box]["link"]]
        inherited = [lanes[b] for b in before if heir[b] is box and b in lanes]
        start = max((tops[b] for b in before), default=tops[box])
        end = max((tops[b] for b in flow.successors(box)), default=tops[box] + HEIGHT[box.role])
        free = next((lane for lane, until in enumerate(busy) if until <= start), len(busy))
        lanes[box] = min(inherited, default=free)
        busy.extend([0.0] * (lanes[box] + 1 - len(busy)))
        busy[lanes[box]] = max(busy[lanes[box]], end)
    return {box: Place(tops[box], lanes[box]) for box in order}
