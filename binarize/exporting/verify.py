"""Proof of equality: every node of the ONNX file against the trained model, on equal inputs.

Logits of a deep binary net cannot be compared from end to end: one rounding difference flips one sign, and behind
it everything differs (torch in float32 against float64 alone does). So each of our ops is *forced*: its readers get
the trained model's value instead of its own, and its own is compared with the trained model's. One run of the cut
model checks every node, the float ones between them included.
"""

from __future__ import annotations

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
from binarize.exporting.bounds import FLOAT_TOLERANCE, STREAM_TOLERANCE, Bounds
from binarize.exporting.emit import own_nodes
from binarize.exporting.forced import (
    Forced,
    Recorder,
    Rounded,
    has_rounding_stream,
    is_forced,
    packed_maps,
    tensors_of,
)
from binarize.lowering import Lowered, float_inputs
from binarize.nn.ops import unpack_signs
from binarize.passes.lower_tools import ACTIVATE, ACTIVATE_LINK, PACK, PACKED_CONV, POOL, Fused, origin_of
from binarize.runtime import InferenceSession, active_isa


def check_runtime() -> None:
    """Raise EnvironmentProblem now if the proof could not run here: before hours of work, not after."""
    active_isa()


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

    def has_shape(self, node: str, value: np.ndarray, wanted: np.ndarray) -> bool:
        """Whether `value` can be compared at all; a failure if not."""
        if value.shape != wanted.shape:
            self.worst, self.worst_node = float("inf"), node
            self.failures.append(f"{node}: {value.shape} instead of {wanted.shape}")
        return value.shape == wanted.shape

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
    packed = packed_maps(lowered)
    origins = {origin for n in lowered.fused.graph.nodes if is_forced(n) and (origin := origin_of(n))}
    truth = Recorder(lowered.original, origins.union(x.name for read in packed.values() for x, _ in read))
    outputs = tensors_of(truth.run(*inputs))
    fused = Forced(lowered.fused, truth.values, packed)
    fused.run(*inputs)
    moved, carried = _roundings(lowered, fused, inputs, outputs)
    forced = _expected(lowered, Bounds(fused.values, fused.largest, moved), model)
    result = Verification(nodes=len(forced))
    names = [i.name for i in model.graph.input]
    feeds = dict(zip(names, (x.numpy() for x in inputs), strict=True))
    _run_forced(model, feeds, forced, list(zip(outputs, carried, strict=True)), session, result)
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


def _roundings(
    lowered: Lowered, fused: Forced, inputs: tuple[Tensor, ...], outputs: list[Tensor]
) -> tuple[dict[str, float], list[float]]:
    """How far a float16 stream's roundings move what float layers give, by node, and the outputs, by their size."""
    if not has_rounding_stream(lowered.fused):
        return {}, [0.0] * len(outputs)
    rounded = Rounded(fused)
    pairs = zip(outputs, tensors_of(rounded.run(*inputs)), strict=True)
    return rounded.moved, [_relative_difference(exact.numpy(), y.numpy()) for exact, y in pairs]


def _refuse_random(original: GraphModule, inputs: tuple[Tensor, ...], outputs: list[Tensor]) -> None:
    again = tensors_of(Interpreter(original).run(*inputs))
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


_KINDS = (
    (("BinaryConv2d",), PACKED_CONV),
    (("Activate",), ACTIVATE),
    (("ActivateLink",), ACTIVATE_LINK),
    (("MaxPool", "AveragePool"), POOL),
    (("Pack",), PACK),
)
"""Names of nodes in the file, and the target of their twins in the fused graph."""


def _expected(lowered: Lowered, bounds: Bounds, model: onnx.ModelProto) -> list[_Expected]:
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


def _expected_outputs(own: onnx.NodeProto, node: Node, bounds: Bounds) -> list[_Expected]:
    """What a node that gives floats, and perhaps their bits, must give."""
    if node.target is POOL:
        value = bounds.values[node.name]
        tolerance = np.full(value.shape[-1], bounds.of_pool(node), np.float32)
        return [_Expected(own.name, own.output[0], _stored(value, node), tolerance)]
    given, bits, *summed = bounds.values[node.name]
    value = summed[0] if summed else given
    tolerance = bounds.of_epilogue(Fused(node), value)
    near = bounds.near(value, Fused(node)["next_threshold"], tolerance)
    if summed:
        value, tolerance = given, bounds.of_link(Fused(node), given, value.shape[-1])
    outputs = zip(own.output, ((_stored(value, node), tolerance), (bits.numpy(), near)), strict=True)
    return [_Expected(own.name, name, v, t) for name, (v, t) in outputs if name]


def _stored(value: Tensor, node: Node) -> np.ndarray:
    """`value` as the stream of `node` keeps it."""
    return value.to(node.meta.get("stream", torch.float32)).numpy()


def _run_forced(
    model: onnx.ModelProto,
    feeds: dict[str, np.ndarray],
    forced: Sequence[_Expected],
    outputs: list[tuple[Tensor, float]],
    session: Any,
    result: Verification,
) -> None:
    cut = _cut(model, forced)
    got = session(cut.SerializeToString()).run(None, feeds | {f.output: f.value for f in forced})
    for item, value in zip(forced, got[len(outputs) :], strict=True):
        if not result.has_shape(item.node, value, item.value):
            continue
        if item.value.dtype == np.uint64:
            _compare_bits(item, value, result)
        else:
            result.values += value.size
            allowed = np.maximum(item.tolerance, 1e-30)
            result.note(item.node, float((_differences(item.value, value) / allowed).max()))
    half = any(item.value.dtype == np.float16 for item in forced)
    tolerance = STREAM_TOLERANCE if half else FLOAT_TOLERANCE
    for (output, carried), value in zip(outputs, got, strict=False):
        if not result.has_shape("output", value, output.numpy()):
            continue
        difference = _relative_difference(output.numpy(), value)
        result.output_difference = max(result.output_difference, difference)
        result.note("output", difference / (tolerance + carried))


def _relative_difference(wanted: np.ndarray, found: np.ndarray) -> float:
    """How far apart outputs are: of floats the share of their largest value, of classes and masks that of all elements.

    Where a rounding falls on the other side of a limit, all of a whole number is different.
    """
    if wanted.dtype.kind not in "fc":
        return float((wanted != found).mean()) if wanted.size else 0.0
    largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-30)
    return float(_differences(wanted, found).max(initial=0.0) / largest)


def _differences(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Of floats, element by element; equal infinities, which a mask is made of, are equal."""
    equal = wanted == found
    first, second = (np.where(equal, 0, values).astype(np.float32) for values in (wanted, found))
    return np.abs(first - second)


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
