"""Take the shift that ends an epilogue (RPReLU's) out of the map that is kept, where every reader can do without it.

Links and residuals are sums: what the map lacks goes, once and for all, into the bias of the operator that adds it. A
threshold moves by as much, and so does the mean that a gate begins with. That is one operation less for every value of
the map. For the proof, `meta["offset"]` of a map's maker says what the map lacks, and its `meta["threshold"]` with what
the whole would be compared.
"""

from __future__ import annotations

from torch import Tensor
from torch.fx import GraphModule, Node

from binarize.nn.functional import map_channels
from binarize.nn.geometry import ConvGeometry
from binarize.passes.base import PassContext, PassResult
from binarize.passes.lower_tools import (
    ARGUMENTS,
    GATE,
    PACK,
    Fused,
    add_constant,
    constant,
    item_of,
    packed_convs,
    set_constant,
)


class AbsorbShifts:
    name = "absorb_shifts"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        geometries = {conv.node: conv.geometry for conv in packed_convs(graph_module)}
        makers = [Fused(node) for node in graph_module.graph.nodes if node.target in ARGUMENTS]
        changed = 0
        for maker in makers:
            y = item_of(maker.node, 0)
            if maker.value("shift").any() and y is not None and all(_reads_shifted(y, u, geometries) for u in y.users):
                _absorb(graph_module, maker, y, geometries)
                changed += 1
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, changed)


def _reads_shifted(y: Node, user: Node, geometries: dict[Node, ConvGeometry]) -> bool:
    """Whether `user` only packs `y`, gates by it, or adds it or its Elastic Link."""
    if user.target in (PACK, GATE):
        return True
    if user.target not in ARGUMENTS:
        return False
    fused = Fused(user)
    added = [name for name in ("link", "residual") if fused.has(name) and fused[name] is y]
    if len(added) != list(user.args).count(y):
        return False
    return "link" not in added or _windows_meet_map(geometries[user])


def _windows_meet_map(geometry: ConvGeometry) -> bool:
    """Whether no window of the link lies off the map of any size, where its mean would be 0."""
    spans = [geometry.span(axis) for axis in range(geometry.dims)]
    return all(2 * pad <= span for pad, span in zip(geometry.pads, spans * 2, strict=True))


def _absorb(graph_module: GraphModule, maker: Fused, y: Node, geometries: dict[Node, ConvGeometry]) -> None:
    shift = maker.value("shift").double()
    maker.node.meta["offset"] = shift.float()
    set_constant(graph_module, maker, "shift", shift.new_zeros(1))
    if item_of(maker.node, 1) is not None:
        maker.node.meta["threshold"] = maker.value("next_threshold")
        set_constant(graph_module, maker, "next_threshold", maker.value("next_threshold").double() - shift)
    for user in list(y.users):
        if user.target is PACK:
            _move_threshold(graph_module, user, shift)
            continue
        if user.target is GATE:
            _move_bias(graph_module, user, shift)
            continue
        fused = Fused(user)
        bias = fused.value("bias").double()
        if fused["residual"] is y:
            bias = bias + shift
        if fused.has("link") and fused["link"] is y:
            bias = bias + fused.value("gamma").double() * _linked(shift, geometries[user])
        set_constant(graph_module, fused, "bias", bias)


def _move_threshold(graph_module: GraphModule, pack: Node, shift: Tensor) -> None:
    threshold = pack.args[1]
    assert isinstance(threshold, Node)
    moved = (constant(threshold).double() - shift).float()
    pack.update_arg(1, add_constant(graph_module, f"{pack.name}_threshold", moved, pack))


def _move_bias(graph_module: GraphModule, gate: Node, shift: Tensor) -> None:
    reduce, bias = (constant(node).double() for node in gate.args[1:3])  # type: ignore[arg-type]
    moved = (bias + shift.expand(len(reduce)) @ reduce).float()
    gate.update_arg(2, add_constant(graph_module, f"{gate.name}_bias", moved, gate))


def _linked(shift: Tensor, geometry: ConvGeometry) -> Tensor:
    """The Elastic Link of a map that has the value `shift[c]` everywhere in channel c: `[C]` or `[1] -> [O]`."""
    values = shift.expand(geometry.in_channels)[None, :, None, None]
    return map_channels(values, geometry.out_channels, geometry.groups).flatten()
