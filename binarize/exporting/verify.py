"""Proof of equality: every node of the ONNX file against the trained model, on equal inputs.

Logits of a deep binary net cannot be compared from end to end: one rounding difference flips one sign, and behind
it everything differs (torch in float32 against float64 alone does). So each of our ops is *forced*: its readers get
the trained model's value instead of its own, and its own is compared with the trained model's. One run of the cut
model checks every node, the float ones between them included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from binarize.errors import VerificationError
from binarize.exporting.emit import own_nodes
from binarize.lowering import Lowered, float_inputs
from binarize.nn.ops import geometry_from_ints, pack_bits, unpack_signs
from binarize.passes.layout_rules import MOVES
from binarize.passes.lower_tools import ACTIVATE, ARGUMENTS, PACK, PACKED_CONV, POOL, TO_NHWC, Fused, constant
from binarize.runtime import InferenceSession

ULP = 2.0**-24
ROUNDINGS = 64
"""Float32 roundings granted to an epilogue. An accumulator wrong by one count is always more: it moves the value by
`2 * scale`, and the grant is `64 * 2^-24 * n * scale`, which is less for every fan-in n below 500 000."""
FLOAT_TOLERANCE = 1e-4
"""Relative to the largest value, for float layers (stem, classifier), which sum thousands of terms in another order."""


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
    """
    inputs = float_inputs(inputs)
    truth = _Recorder(lowered.original)
    outputs = _flat(truth.run(*inputs))
    fused = _Forced(lowered.fused, truth.values)
    fused.run(*inputs)
    forced = _expected(lowered, fused.values, model)
    result = Verification(nodes=len(forced))
    names = [i.name for i in model.graph.input]
    feeds = dict(zip(names, (x.numpy() for x in inputs), strict=True))
    _run_forced(model, feeds, forced, outputs, session, result)
    free = session(model.SerializeToString()).run(None, feeds)[0]
    if free.ndim == 2:
        result.free_running_top1 = float((free.argmax(1) == outputs[0].numpy().argmax(1)).mean())
    if result.failures:
        raise VerificationError(
            f"{len(result.failures)} of {result.nodes} nodes differ from the trained model: "
            + "; ".join(result.failures[:3]),
            layer=result.worst_node,
            hint="this is a bug of binarize or of the machine; please report it with the model",
        )
    return result


@dataclass(frozen=True)
class _Expected:
    """One output of a node of ours with the value it must have."""

    node: str
    output: str
    value: np.ndarray
    tolerance: np.ndarray
    """For floats: allowed difference per channel. For bits: whether a channel's value is too near to its threshold."""


class _Recorder(Interpreter):
    """Runs a graph and remembers every value by its node's name."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self.values[n.name] = value
        return value


class _Forced(_Recorder):
    """Runs the fused graph, where each of our operators gives what the trained model has at its place."""

    def __init__(self, graph_module: GraphModule, truth: dict[str, Any]) -> None:
        super().__init__(graph_module)
        self.truth = truth

    def run_node(self, n: Node) -> Any:
        if not is_forced(n):
            return super().run_node(n)
        value = self.truth[n.meta["origin"]]
        value = value[:, :, None, None] if value.dim() == 2 else value  # a mean that dropped the axes
        value = value.permute(TO_NHWC).contiguous()
        result: Any = value
        if n.target in ARGUMENTS:
            result = value, pack_bits(value > Fused(n).value("next_threshold"))
        self.values[n.name] = result
        return result


def is_forced(node: Node) -> bool:
    """Whether the trained model has a value for this operator; a pool that changed places with its input has none."""
    return "origin" in node.meta and node.target in {*ARGUMENTS, POOL}


_OPERATORS = {"Pack": PACK, "BinaryConv2d": PACKED_CONV, "Activate": ACTIVATE, "MaxPool": POOL, "AveragePool": POOL}


def _expected(lowered: Lowered, values: dict[str, Any], model: onnx.ModelProto) -> list[_Expected]:
    """What every output of every node of ours must be."""
    expected: list[_Expected] = []
    for kinds in (("BinaryConv2d",), ("Activate",), ("MaxPool", "AveragePool"), ("Pack",)):
        nodes = [node for node in lowered.fused.graph.nodes if node.target is _OPERATORS[kinds[0]]]
        for own, node in zip(own_nodes(model, *kinds), nodes, strict=True):
            if node.target is PACK:
                expected.append(_expected_pack(own, node, values))
            elif is_forced(node):
                expected += _expected_floats(own, node, values)
    return expected


def _expected_floats(own: onnx.NodeProto, node: Node, values: dict[str, Any]) -> list[_Expected]:
    """What a node that gives floats, and perhaps their bits, must give."""
    if node.target is POOL:
        allowed = _uncertainty(node.args[0], values) or ROUNDINGS * ULP * _largest(node.args[0], values)
        value = values[node.name]
        return [_Expected(own.name, own.output[0], value.numpy(), np.full(value.shape[-1], allowed, np.float32))]
    value, bits = values[node.name]
    fused = Fused(node)
    tolerance = _epilogue_tolerance(fused, values, value.shape[-1])
    near = (value - fused.value("next_threshold")).abs().numpy() <= tolerance
    outputs = zip(own.output, ((value, tolerance), (bits, near)), strict=True)
    return [_Expected(own.name, name, v.numpy(), t) for name, (v, t) in outputs if name]


def _expected_pack(own: onnx.NodeProto, pack: Node, values: dict[str, Any]) -> _Expected:
    source, threshold = pack.args
    assert isinstance(threshold, Node)
    near = (values[source.name] - constant(threshold)).abs().numpy() <= _uncertainty(source, values)  # type: ignore
    return _Expected(own.name, own.output[0], values[pack.name].numpy(), near)


def _largest(node: Any, values: dict[str, Any]) -> float:
    return float(values[node.name].abs().max())


def _uncertainty(node: Any, values: dict[str, Any]) -> float:
    """How far `node`'s value may be off in the cut model: not at all where only forced values were moved about."""
    exact = node.op == "placeholder" or node.op == "get_attr" or is_forced(node)
    if exact or (node.target in MOVES and all(_uncertainty(i, values) == 0 for i in node.all_input_nodes)):
        return 0.0
    if not isinstance(values[node.name], Tensor):
        return 0.0 if all(_uncertainty(i, values) == 0 for i in node.all_input_nodes) else FLOAT_TOLERANCE
    return FLOAT_TOLERANCE * _largest(node, values)


def _epilogue_tolerance(fused: Fused, values: dict[str, Any], channels: int) -> np.ndarray:
    """Rounding error bound per output channel: the sum of the epilogue's terms' sizes, times `ROUNDINGS` ulp.

    What the terms' inputs may be off comes on top.
    """
    scale, size, off = fused.value("scale").abs(), fused.value("bias").abs(), torch.zeros(1)
    if fused.has("geometry"):
        g = geometry_from_ints(fused["geometry"])
        size = size + g.in_channels // g.groups * g.kernel[0] * g.kernel[1] * scale
    else:
        gate = 1.0 if fused.absent("gate") else _largest(fused["gate"], values)
        size = size + scale * gate * _largest(fused["x"], values)
        off = off + scale * gate * _uncertainty(fused["x"], values)
        off = off + scale * _uncertainty(fused["gate"], values) * _largest(fused["x"], values)
    if not fused.absent("link"):
        terms = max(1, -(-g.in_channels // g.out_channels))
        gamma = fused.value("gamma").abs() * terms
        size = size + gamma * _largest(fused["link"], values)
        off = off + gamma * _uncertainty(fused["link"], values)
    if not fused.absent("residual"):
        size = size + _largest(fused["residual"], values)
        off = off + _uncertainty(fused["residual"], values)
    steepest = fused.value("slope").abs().clamp_min(1.0)
    size = size * steepest + fused.value("shift").abs()
    return (ROUNDINGS * ULP * size + off * steepest).expand(channels).numpy()


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
            result.note(item.node, float((np.abs(value - item.value) / allowed).max()))
    for output, value in zip(outputs, got, strict=False):
        difference = float(np.abs(output.numpy() - value).max()) / max(float(output.abs().max()), 1e-30)
        result.output_difference = max(result.output_difference, difference)
        result.note("output", difference / FLOAT_TOLERANCE)


def _compare_bits(item: _Expected, value: np.ndarray, result: Verification) -> None:
    channels = item.tolerance.shape[-1]
    got, want = (
        unpack_signs(torch.from_numpy(words.view(np.uint64)), channels).numpy() for words in (value, item.value)
    )
    different = got != want
    result.bits += different.size
    result.bits_near_threshold += int((different & item.tolerance).sum())
    wrong = int((different & ~item.tolerance).sum())
    if wrong:
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
        kind = TensorProto.UINT64 if item.value.dtype == np.uint64 else TensorProto.FLOAT
        cut.graph.input.append(helper.make_tensor_value_info(item.output, kind, item.value.shape))
        cut.graph.output.append(helper.make_tensor_value_info(own[item.output], kind, None))
    return cut


def _flat(output: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, Tensor)]
