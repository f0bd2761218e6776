"""Proof of equality: every node of the ONNX file against the trained model, on equal inputs.

Logits of a deep binary net cannot be compared from end to end: one rounding difference flips one sign, and behind
it everything differs (torch in float32 against float64 alone does). So each packed op is *forced*: its readers get
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
from binarize.exporting.emit import DOMAIN, binary_nodes
from binarize.lowering import Lowered, float_inputs
from binarize.nn.ops import pack_bits, unpack_signs
from binarize.passes.lower_tools import (
    PACK,
    TO_NCHW,
    TO_NHWC,
    PackedConv,
    constant,
    is_item,
    is_permute,
    packed_convs,
)
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
    forced = _forced_values(lowered, truth.values, model)
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
class _Forced:
    """One packed node's output with the value it must have."""

    node: str
    output: str
    value: np.ndarray
    tolerance: np.ndarray
    """For floats: allowed difference per channel. For bits: whether a channel's value is too near to its threshold."""


class _Recorder(Interpreter):
    """Runs a graph and remembers every tensor by its node's name."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.values[n.name] = value
        return value


def _forced_values(lowered: Lowered, truth: dict[str, Tensor], model: onnx.ModelProto) -> list[_Forced]:
    """What every output of every packed node must be."""
    forced: list[_Forced] = []
    for node, conv in zip(binary_nodes(model), packed_convs(lowered.fused), strict=True):
        value = truth[conv.node.meta["origin"]].permute(TO_NHWC).contiguous()
        tolerance = _epilogue_tolerance(conv, truth)
        for index, output in enumerate(node.output):
            if output and index == 0:
                forced.append(_Forced(node.name, output, value.numpy(), tolerance))
            elif output:
                forced.append(_forced_bits(node.name, output, value, conv.value("next_threshold"), tolerance))
    packs = [node for node in model.graph.node if node.domain == DOMAIN and node.op_type == "Pack"]
    for node, pack in zip(packs, (n for n in lowered.fused.graph.nodes if n.target is PACK), strict=True):
        value = _value_of(pack.args[0], truth)
        tolerance = np.full(value.shape[-1], FLOAT_TOLERANCE * float(value.abs().max()), np.float32)
        forced.append(_forced_bits(node.name, node.output[0], value, constant(pack.args[1]), tolerance))
    return forced


def _forced_bits(name: str, output: str, value: Tensor, threshold: Tensor, tolerance: np.ndarray) -> _Forced:
    near = (value - threshold).abs().numpy() <= tolerance
    return _Forced(name, output, pack_bits(value > threshold).numpy(), near)


def _value_of(node: Any, truth: dict[str, Tensor]) -> Tensor:
    """The trained model's NHWC value of `node` in the fused graph."""
    if is_item(node, 0):
        return truth[node.args[0].meta["origin"]].permute(TO_NHWC)
    if is_permute(node, TO_NHWC):
        source = node.args[0]
        if is_permute(source, TO_NCHW):
            return _value_of(source.args[0], truth)
        return truth[source.name].permute(TO_NHWC)
    return truth[node.name]


def _epilogue_tolerance(conv: PackedConv, truth: dict[str, Tensor]) -> np.ndarray:
    """Rounding error bound per output channel: the sum of the epilogue's terms' sizes, times `ROUNDINGS` ulp."""
    g = conv.geometry
    fan_in = g.in_channels // g.groups * g.kernel[0] * g.kernel[1]
    size = fan_in * conv.value("scale").abs() + conv.value("bias").abs()
    if not conv.absent("link"):
        terms = max(1, -(-g.in_channels // g.out_channels))
        size = size + conv.value("gamma").abs() * terms * _value_of(conv["link"], truth).abs().max()
    if not conv.absent("residual"):
        size = size + _value_of(conv["residual"], truth).abs().max()
    size = size * conv.value("slope").abs().clamp_min(1.0) + conv.value("shift").abs()
    return (ROUNDINGS * ULP * size.expand(g.out_channels)).numpy()


def _run_forced(
    model: onnx.ModelProto,
    feeds: dict[str, np.ndarray],
    forced: Sequence[_Forced],
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


def _compare_bits(item: _Forced, value: np.ndarray, result: Verification) -> None:
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


def _cut(model: onnx.ModelProto, forced: Sequence[_Forced]) -> onnx.ModelProto:
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
