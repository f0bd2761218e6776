"""Proof of equality: every node of the ONNX file against the trained model, on equal inputs.

Logits of a deep binary net cannot be compared from end to end: one rounding difference flips one sign, and behind
it everything differs (torch in float32 against float64 alone does). So each of our ops is *forced*: its readers get
the trained model's value instead of its own, and its own is compared with the trained model's. One run of the cut
model checks every node, the float ones between them included.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from binarize.errors import UnsupportedModelError, VerificationError
from binarize.exporting.emit import own_nodes
from binarize.lowering import Lowered, float_inputs
from binarize.nn.ops import geometry_from_ints, pack, unpack_signs
from binarize.passes.layout_rules import MOVES
from binarize.passes.lower_tools import (
    ACTIVATE,
    ARGUMENTS,
    PACK,
    PACKED_CONV,
    POOL,
    TO_NHWC,
    Fused,
    constant,
    producer_of,
)
from binarize.runtime import InferenceSession

ULP = 2.0**-24
ROUNDINGS = 64
"""Float32 roundings granted to an epilogue. An accumulator wrong by one count is always more: it moves the value by
`2 * scale`, and the grant is `64 * 2^-24 * n * scale`, which is less for every fan-in n below 500 000."""
FLOAT_TOLERANCE = 1e-4
"""Relative to the largest value, for float layers (stem, classifier), which sum thousands of terms in another order."""

STREAM_TOLERANCE = 2.0**-9
"""The same for outputs behind a float16 stream: four roundings of its largest value."""


@dataclass
class Verification:
    """What the proof found.

    Attributes:
        nodes: packed nodes compared.
        values, bits: how many floats and bits were compared.
        worst: largest difference as a share of what is allowed, over all nodes.
        worst_node: where that was.
        bits_near_threshold: bits that differ where the value equals the threshold within tolerance.
        output_difference: largest difference of the outputs on forced inputs, relative to the largest output.
        free_running_top1: share of inputs with the same largest output when nothing is forced.
    """

    nodes: int = 0
    values: int = 0
    bits: int = 0
    worst: float = 0.0
    worst_node: str = ""
    bits_near_threshold: int = 0
    output_difference: float = 0.0
    free_running_top1: float = 1.0
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def joined(cls, proofs: Iterable[Verification]) -> Verification:
        """Several proofs as one: sums and worst cases."""
        proofs = list(proofs)
        worst = max(proofs, key=lambda proof: proof.worst)
        return cls(
            nodes=sum(proof.nodes for proof in proofs),
            values=sum(proof.values for proof in proofs),
            bits=sum(proof.bits for proof in proofs),
            worst=worst.worst,
            worst_node=worst.worst_node,
            bits_near_threshold=sum(proof.bits_near_threshold for proof in proofs),
            output_difference=max(proof.output_difference for proof in proofs),
            free_running_top1=min(proof.free_running_top1 for proof in proofs),
        )

    def note(self, node: str, share: float) -> None:
        if share > self.worst or share != share:
            self.worst, self.worst_node = float(share), node
        if not share <= 1:
            self.failures.append(f"{node}: {share:.3g} times the allowed difference")


@torch.no_grad()
def verify(
    lowered: Lowered,
    model: onnx.ModelProto,
    inputs: tuple[Tensor, ...],
    *,
    session: Any = InferenceSession,
) -> Verification:
    """Compare every packed node and every output of `model` with the trained model on `inputs`.

    Args:
        lowered: the graphs `model` was emitted from.
        inputs: one batch per model input.
        session: what runs ONNX bytes; by default ONNX Runtime with our op library.

    Raises:
        VerificationError: names the worst nodes.
        UnsupportedModelError: the model's answer is random, so that nothing can be equal to it.
    """
    inputs = float_inputs(inputs)
    packed = _packed_maps(lowered)
    origins = {n.meta["origin"] for n in lowered.fused.graph.nodes if is_forced(n)}
    truth = _Recorder(lowered.original, origins.union(x.name for x, _ in packed.values()))
    outputs = _flat(truth.run(*inputs))
    fused = _Forced(lowered.fused, truth.values, packed)
    fused.run(*inputs)
    forced = _expected(lowered, _Bounds(fused.values, fused.largest), model)
    result = Verification(nodes=len(forced))
    names = [i.name for i in model.graph.input]
    feeds = dict(zip(names, (x.numpy() for x in inputs), strict=True))
    _run_forced(model, feeds, forced, outputs, session, result)
    free = session(model.SerializeToString()).run(None, feeds)[0]
    if free.ndim == 2:
        result.free_running_top1 = float((free.argmax(1) == outputs[0].numpy().argmax(1)).mean())
    if result.failures:
        _refuse_random(lowered.original, inputs, outputs)
        raise VerificationError(
            f"{len(result.failures)} of {result.nodes} nodes differ from the trained model: "
            + "; ".join(result.failures[:3]),
            layer=result.worst_node,
            hint="this is a bug of binarize or of the machine; please report it with the model",
        )
    return result


def _refuse_random(original: GraphModule, inputs: tuple[Tensor, ...], outputs: list[Tensor]) -> None:
    again = _flat(Interpreter(original).run(*inputs))
    pairs = zip(outputs, again, strict=True)
    if not all(torch.equal(first.nan_to_num(), second.nan_to_num()) for first, second in pairs):
        raise UnsupportedModelError(
            "two runs of the model on equal inputs give different outputs, in eval mode",
            hint="take out the dropout or noise that its forward leaves on: a file cannot be proven equal to it",
        )


@dataclass(frozen=True)
class _Expected:
    """One output of a node of ours with the value it must have."""

    node: str
    output: str
    value: np.ndarray
    tolerance: np.ndarray
    """For floats: allowed difference per channel. For bits: whether a value is too near to a threshold."""


def _packed_maps(lowered: Lowered) -> dict[str, tuple[Node, Tensor]]:
    """For every `pack` of the fused graph: what the trained model's conv reads instead, and its thresholds."""
    convs = {node.name: node for node in lowered.original.graph.nodes}
    packs = [node for node in lowered.fused.graph.nodes if node.target is PACK]
    sources = {pack.name: convs[pack.meta["reader"]].args[:2] for pack in packs}
    return {name: (x, constant(threshold)) for name, (x, threshold) in sources.items()}


class _Recorder(Interpreter):
    """Runs a graph and remembers the values of the nodes in `wanted`, by name: all of them can be tens of GB."""

    def __init__(self, graph_module: GraphModule, wanted: set[str]) -> None:
        super().__init__(graph_module)
        self.wanted = wanted
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = self.compute(n)
        if n.name in self.wanted:
            self.values[n.name] = value
        return value

    def compute(self, n: Node) -> Any:
        return super().run_node(n)


class _Forced(_Recorder):
    """Runs the fused graph, where each of our operators gives what the trained model has at its place.

    A float16 stream is not rounded here: the trained model's bits come from its own values. Of every float tensor the
    largest size is kept, and the values of what is compared.
    """

    def __init__(
        self, graph_module: GraphModule, truth: dict[str, Any], packed: dict[str, tuple[Node, Tensor]]
    ) -> None:
        nodes = graph_module.graph.nodes
        packs = [n for n in nodes if n.target is PACK]
        wanted = {*filter(is_forced, nodes), *packs, *(n.args[0] for n in packs)}
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
            lacks = _maker(n).meta.get("offset", torch.zeros(1))
            self.largest[n.name] = float(size + lacks.abs().max())
        return value

    def compute(self, n: Node) -> Any:
        """Bits are those of the trained model's values: others round otherwise, in another layout or without a shift.

        One bit that is different for that reason is another accumulator in the conv that reads it.
        """
        if n.target is PACK:
            x, threshold = self.packed[n.name]
            return pack(self.true_value(x.name), threshold)
        if not is_forced(n):
            return super().compute(n)
        value = self.true_value(n.meta["origin"])
        if n.target is POOL:
            return value
        threshold = n.meta["threshold"] if "threshold" in n.meta else Fused(n).value("next_threshold")
        return value - n.meta.get("offset", 0), pack(value, threshold)

    def true_value(self, origin: str) -> Tensor:
        """What the trained model's node of that name gives, channels last."""
        value: Tensor = self.truth[origin]
        value = value[:, :, None, None] if value.dim() == 2 else value  # a mean that dropped the axes
        return value.permute(TO_NHWC).contiguous()


def _maker(value: Any) -> Node:
    """The operator of ours whose floats `value` is, or `value`."""
    maker = producer_of(value)
    return value if maker is None else maker.node


def is_forced(node: Node) -> bool:
    """Whether the trained model has a value for this operator; a pool that changed places with its input has none."""
    return "origin" in node.meta and node.target in {*ARGUMENTS, POOL}


_KINDS = (
    (("BinaryConv2d",), PACKED_CONV),
    (("Activate",), ACTIVATE),
    (("MaxPool", "AveragePool"), POOL),
    (("Pack",), PACK),
)
"""Names of nodes in the file, and the target of their twins in the fused graph."""


def _expected(lowered: Lowered, bounds: _Bounds, model: onnx.ModelProto) -> list[_Expected]:
    """What every output of every node of ours must be."""
    values = bounds.values
    expected: list[_Expected] = []
    for names, target in _KINDS:
        nodes = [node for node in lowered.fused.graph.nodes if node.target is target]
        for own, node in zip(own_nodes(model, *names), nodes, strict=True):
            if target is PACK:
                near = bounds.near(values[node.args[0].name], node.args[1], bounds.of_pack(node))
                expected.append(_Expected(own.name, own.output[0], values[node.name].numpy(), near))
            elif is_forced(node):
                expected += _expected_outputs(own, node, bounds)
    return expected


def _expected_outputs(own: onnx.NodeProto, node: Node, bounds: _Bounds) -> list[_Expected]:
    """What a node that gives floats, and perhaps their bits, must give."""
    if node.target is POOL:
        value = bounds.values[node.name]
        tolerance = np.full(value.shape[-1], bounds.of_pool(node), np.float32)
        return [_Expected(own.name, own.output[0], _stored(value, node, own.name), tolerance)]
    value, bits = bounds.values[node.name]
    tolerance = bounds.of_epilogue(Fused(node), value)
    near = bounds.near(value, Fused(node)["next_threshold"], tolerance)
    outputs = zip(own.output, ((_stored(value, node, own.name), tolerance), (bits.numpy(), near)), strict=True)
    return [_Expected(own.name, name, v, t) for name, (v, t) in outputs if name]


def _stored(value: Tensor, node: Node, layer: str) -> np.ndarray:
    """`value` as the stream of `node` keeps it.

    Raises:
        UnsupportedModelError: float16 has no such numbers.
    """
    stream = node.meta.get("stream", torch.float32)
    stored = value.to(stream)
    if stream == torch.float16 and bool((stored.isinf() & value.isfinite()).any()):
        largest = float(value.abs().max())
        raise UnsupportedModelError(
            f"its values reach {largest:.3g}, float16 ends at 65504",
            layer=layer,
            hint="export with the float32 stream (--stream float32, the default)",
        )
    return stored.numpy()


@dataclass(frozen=True)
class _Bounds:
    """How far apart equal computations may be.

    Attributes:
        values: of the fused graph's compared nodes on forced values.
        sizes: the largest size in each of its float tensors.
    """

    values: dict[str, Any]
    sizes: dict[str, float]

    def near(self, value: Tensor, threshold: Node, tolerance: Any) -> np.ndarray:
        """Where a bit may be either, `[..., planes, C]`."""
        thresholds = constant(threshold)
        by_plane = value.unsqueeze(-2) - thresholds.view(-1, thresholds.shape[-1])
        return (by_plane.abs().numpy() <= tolerance) & (np.asarray(tolerance) > 0)

    def drift(self, node: Node) -> float:
        """How far `node`'s value may be off in the cut model: not at all where forced values are only moved about."""
        if node.op in ("placeholder", "get_attr") or is_forced(node):
            return 0.0
        source = node.args[0] if node.target is operator.getitem else None
        if isinstance(source, Node) and source.target in ARGUMENTS and not is_forced(source):
            return max(FLOAT_TOLERANCE, 2 * _unit(node)) * self.largest(node)  # a part of a sum, without a twin
        if node.target in MOVES or node.name not in self.sizes:
            return max((self.drift(i) for i in node.all_input_nodes), default=0.0)
        return max(FLOAT_TOLERANCE, 2 * _unit(node)) * self.largest(node)

    def off(self, node: Any) -> float:
        """How far it may be from the trained model's value: a float16 stream rounds that on top."""
        return self.drift(node) + _unit(node) * self.largest(node)

    def largest(self, node: Any) -> float:
        return self.sizes[node.name]

    def of_pack(self, pack: Node) -> np.ndarray:
        """A map that lacks a shift was rounded when that was taken from it, and so was its threshold."""
        x, threshold = pack.args
        assert isinstance(threshold, Node)
        lacks = _maker(x).meta.get("offset", torch.zeros(1)).abs()
        moved = constant(threshold).abs() + 2 * lacks
        return (self.off(x) + 4 * ULP * torch.where(lacks > 0, moved, 0)).numpy()

    def of_pool(self, pool: Node) -> float:
        return self.off(pool.args[0]) + (ROUNDINGS * ULP + 2 * _unit(pool)) * self.largest(pool.args[0])

    def of_epilogue(self, fused: Fused, value: Tensor) -> np.ndarray:
        """Per output channel: the sum of the terms' sizes times `ROUNDINGS` ulp, and what their inputs may be off.

        A float16 stream rounds twice: what the node gives, and what it is compared with.
        """
        size, off, summed = fused.value("bias").abs(), torch.zeros(1), 1
        if fused.has("geometry"):
            g = geometry_from_ints(fused["geometry"])
            summed = max(1, -(-g.in_channels // g.out_channels))
            counts = g.in_channels // g.groups * g.kernel[0] * g.kernel[1]
            scale = counts * fused.value("scale").abs().view(-1, fused.value("scale").shape[-1]).sum(0)
            factors = "gate", "factor"
        else:
            scale, factors = fused.value("scale").abs(), ("x", "gate")
        first, second = (self.largest(fused[name]) for name in factors)
        size = size + scale * first * second
        off = off + scale * (second * self.off(fused[factors[0]]) + first * self.off(fused[factors[1]]))
        if not fused.absent("link"):
            gamma = fused.value("gamma").abs() * summed
            size = size + gamma * self.largest(fused["link"])
            off = off + gamma * self.off(fused["link"])
        if not fused.absent("residual"):
            size = size + self.largest(fused["residual"])
            off = off + self.off(fused["residual"])
        steepest = fused.value("slope").abs().clamp_min(1.0)
        size = size * steepest + fused.value("shift").abs() + fused.node.meta.get("offset", torch.zeros(1)).abs()
        rounded = 2 * _unit(fused.node) * value.abs().amax((0, 1, 2))
        return (ROUNDINGS * ULP * size + off * steepest + rounded).expand(value.shape[-1]).numpy()


def _unit(node: Node) -> float:
    """Relative rounding error of what a float16 stream stores; a float32 one rounds in `ROUNDINGS`."""
    return 2.0**-11 if node.meta.get("stream") == torch.float16 else 0.0


def _run_forced(
    model: onnx.ModelProto,
    feeds: dict[str, np.ndarray],
    forced: Sequence[_Expected],
    outputs: list[Tensor],
    session: Any,
    result: Verification,
) -> None:
    cut = _cut(model, forced)
    got = session(cut.SerializeToString()).run(None, feeds | {f.output: f.value for f in forced})
    for item, value in zip(forced, got[len(outputs) :], strict=True):
        if item.value.dtype == np.uint64:
            _compare_bits(item, value, result)
        else:
            result.values += value.size
            allowed = np.maximum(item.tolerance, 1e-30)
            difference = np.abs(value.astype(np.float32) - item.value.astype(np.float32))
            result.note(item.node, float((difference / allowed).max()))
    half = any(item.value.dtype == np.float16 for item in forced)
    tolerance = STREAM_TOLERANCE if half else FLOAT_TOLERANCE
    for output, value in zip(outputs, got, strict=False):
        difference = float(np.abs(output.numpy() - value).max()) / max(float(output.abs().max()), 1e-30)
        result.output_difference = max(result.output_difference, difference)
        result.note("output", difference / tolerance)


def _compare_bits(item: _Expected, value: np.ndarray, result: Verification) -> None:
    planes, channels = item.tolerance.shape[-2:]
    got, want = (
        unpack_signs(torch.from_numpy(words.view(np.uint64).reshape(*words.shape[:-1], planes, -1)), channels).numpy()
        for words in (value, item.value)
    )
    different = got != want
    result.bits += different.size
    result.bits_near_threshold += int((different & item.tolerance).sum())
    wrong = int((different & ~item.tolerance).sum())
    if wrong:
        result.worst, result.worst_node = float("inf"), item.node
        result.failures.append(f"{item.node}: {wrong} of {different.size} bits differ")


def _cut(model: onnx.ModelProto, forced: Sequence[_Expected]) -> onnx.ModelProto:
    """The model with every forced value as an input, and what its node computes as an output instead."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    own = {item.output: f"{item.output}/own" for item in forced}
    for node in cut.graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = own.get(name, name)
    for item in forced:
        kind = helper.np_dtype_to_tensor_dtype(item.value.dtype)
        cut.graph.input.append(helper.make_tensor_value_info(item.output, kind, item.value.shape))
        cut.graph.output.append(helper.make_tensor_value_info(own[item.output], kind, None))
    return cut


def _flat(output: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, Tensor)]
