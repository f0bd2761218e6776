"""The trained model's values, and the fused graph run on them: what the proof of equality compares a file with."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from binarize.errors import BinarizeError, UnsupportedModelError, VerificationError
from binarize.lowering import Lowered
from binarize.nn.ops import pack, squeezed_link
from binarize.passes.layout_rules import ATEN, MOVES, SPLITS
from binarize.passes.lower_tools import (
    ACTIVATE_LINK,
    ARGUMENTS,
    PACK,
    POOL,
    TO_NHWC,
    Fused,
    constant,
    origin_of,
    producer_of,
)

Packed = dict[str, list[tuple[Node, Tensor]]]
"""For every `pack` of the fused graph, by its planes: what trained convs read instead, and their thresholds."""


def packed_maps(lowered: Lowered) -> Packed:
    convs = {node.name: node for node in lowered.original.graph.nodes}
    packs = [node for node in lowered.fused.graph.nodes if node.target is PACK]
    sources = {pack.name: [convs[reader].args[:2] for reader in pack.meta["readers"]] for pack in packs}
    return {name: [(x, constant(threshold)) for x, threshold in read] for name, read in sources.items()}


class Recorder(Interpreter):
    """Runs a graph and remembers the values of the nodes in `wanted`, by name: all of them can be tens of GB.

    Raises:
        VerificationError: a node cannot be run, and is named.
    """

    def __init__(self, graph_module: GraphModule, wanted: set[str]) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False
        self.wanted = wanted
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        try:
            value = self.compute(n)
        except BinarizeError:
            raise
        except Exception as error:
            raise VerificationError(
                f"the proof cannot run {n.target}: {type(error).__name__}: {error}",
                layer=n.name,
                hint="unless memory ran out, this is a bug of binarize; please report it with the model",
            ) from error
        if n.name in self.wanted:
            self.values[n.name] = value
        return value

    def compute(self, n: Node) -> Any:
        return super().run_node(n)


class Forced(Recorder):
    """Runs the fused graph, where each of our operators gives what the trained model has at its place.

    A float16 stream is not rounded here: the trained model's bits come from its own values. Of every float tensor the
    largest size is kept, and the values of what is compared.
    """

    def __init__(self, graph_module: GraphModule, truth: dict[str, Any], packed: Packed) -> None:
        nodes = graph_module.graph.nodes
        packs = [n for n in nodes if n.target is PACK]
        wanted = {*filter(is_forced, nodes), *packs, *(n.args[0] for n in packs)}
        if has_rounding_stream(graph_module):
            wanted.update(filter(_carries_roundings, nodes))
        super().__init__(copy.deepcopy(graph_module).float(), {n.name for n in wanted})
        self.truth = truth
        self.packed = packed
        self.largest: dict[str, float] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            size = torch.linalg.vector_norm(value, torch.inf)
            if size.isinf():  # the padding of a max pool, which is exact
                size = value.where(value.isfinite(), 0).abs().max()
            lacks = maker_of(n).meta.get("offset", torch.zeros(1))
            self.largest[n.name] = float(size + lacks.abs().max())
        return value

    def compute(self, n: Node) -> Any:
        """Bits are those of the trained model's values: others round otherwise, in another layout or without a shift.

        One bit that is different for that reason is another accumulator in the conv that reads it. A link comes with
        what was summed.
        """
        if n.target is PACK:
            planes = [pack(self.true_value(x.name), threshold) for x, threshold in self.packed[n.name]]
            return torch.cat([bits.view(torch.int64) for bits in planes], -1).view(torch.uint64)
        origin = origin_of(n) if is_forced(n) else None
        if origin is None:
            return super().compute(n)
        value = self.true_value(origin)
        if n.target is POOL:
            return value
        threshold = n.meta["threshold"] if "threshold" in n.meta else Fused(n).value("next_threshold")
        y, bits = value - n.meta.get("offset", 0), pack(value, threshold)
        return (squeezed_link(y, Fused(n).value("gamma")), bits, y) if n.target is ACTIVATE_LINK else (y, bits)

    def true_value(self, origin: str) -> Tensor:
        """What the trained model's node of that name gives, channels last."""
        value: Tensor = self.truth[origin]
        value = value[:, :, None, None] if value.dim() == 2 else value  # a mean that dropped the axes
        return value.permute(TO_NHWC).contiguous()


class Rounded(Forced):
    """Runs the fused graph once more as its float16 stream has it, and measures how far float layers carry roundings.

    How steep an exponential or a division is depends on where it is, so that no constant bounds it.

    Attributes:
        moved: by node, the largest change of its values from those of `exact`, which has run.
    """

    def __init__(self, exact: Forced) -> None:
        Recorder.__init__(self, exact.module, set())  # type: ignore[arg-type]
        self.truth, self.packed, self.largest = exact.truth, exact.packed, dict(exact.largest)
        self.exact = exact.values
        self.moved: dict[str, float] = {}

    def run_node(self, n: Node) -> Any:
        value, exact = super().run_node(n), self.exact.get(n.name)
        if isinstance(value, Tensor) and isinstance(exact, Tensor) and value.is_floating_point() and value.numel():
            self.moved[n.name] = float((value - exact).where(value != exact, 0).abs().max())
        return value

    def compute(self, n: Node) -> Any:
        value = super().compute(n)
        narrow = n.meta.get("stream") == torch.float16 and isinstance(value, Tensor)
        return _narrowed(value, maker_of(n)) if narrow else value


def has_rounding_stream(graph_module: GraphModule) -> bool:
    return any(node.meta.get("stream") == torch.float16 for node in graph_module.graph.nodes)


def _narrowed(value: Tensor, maker: Node) -> Tensor:
    """What float16 leaves of `value`.

    Raises:
        UnsupportedModelError: float16 has no such numbers.
    """
    narrowed = value.half().float()
    if bool((narrowed.isinf() & value.isfinite()).any()):
        raise UnsupportedModelError(
            f"its values reach {float(value.abs().max()):.3g}, float16 ends at 65504",
            layer=maker.meta.get("path") or maker.meta.get("layer", maker.name),
            hint="export with the float32 stream (--stream float32, the default)",
        )
    return narrowed


def _carries_roundings(node: Node) -> bool:
    """Whether `node` computes, from whatever, what our operators read."""
    if node.op != "call_function" or is_forced(node) or moves(node):
        return False
    return any(user.target in {*ARGUMENTS, POOL} or moves(user) for user in node.users)


def moves(node: Node) -> bool:
    """Whether `node` gives values that it reads, as they are."""
    if node.target is operator.getitem:
        source: Any = node.args[0]
        return source.target in SPLITS or is_forced(source)
    largest = node.target is ATEN.max_pool2d.default or (node.target is POOL and node.args[1] == "max")
    return bool(largest) or node.target in MOVES


def maker_of(value: Any) -> Node:
    """The operator of ours whose floats `value` is, or `value`."""
    maker = producer_of(value)
    return value if maker is None else maker.node


def is_forced(node: Node) -> bool:
    """Whether the trained model has a value for this operator; a pool that changed places with its input has none."""
    return origin_of(node) is not None and node.target in {*ARGUMENTS, POOL}


def tensors_of(output: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, Tensor)]
