"""Emit: the fused graph becomes an ONNX model of standard ops and those of `ai.binarize` (docs/ops.md)."""

from __future__ import annotations

import contextlib
import io
import operator
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any
from unittest import mock

import onnx
import torch
from onnx import defs
from onnxscript import values
from torch import Tensor, nn
from torch._ops import OpOverload

from binarize.errors import UnsupportedModelError
from binarize.exporting.functions import model_local_functions
from binarize.exporting.output_names import name_outputs, output_names
from binarize.files import atomic_output
from binarize.lowering import Lowered, Shapes, dynamic_batch, float_inputs
from binarize.lowering.quiet import quiet
from binarize.nn.ops import Terms, geometry_from_ints
from binarize.passes.lower_tools import (
    ACTIVATE,
    ACTIVATE_LINK,
    GATE,
    GATHER_CHANNELS,
    PACK,
    PACKED_CONV,
    PLACE,
    POOL,
    packed_convs,
)

try:
    from torch.onnx._internal.exporter import _fx_passes
except ImportError:  # this torch has no such module
    _fx_passes = None  # type: ignore[assignment]

DOMAIN = "ai.binarize"
OPSET = 18
"""Of the standard ops, in the model and in the functions it carries."""

MAX_BYTES = 2**31 - 1
"""Of a protocol buffer."""


def emit(lowered: Lowered, example_inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    """The ONNX model of `lowered`, with a symbolic batch dimension unless the model's code fixes it.

    Args:
        lowered: from `binarize.lowering.lower`.
        example_inputs: like the ones it was lowered with.

    Raises:
        UnsupportedModelError: an operator has no ONNX form, and is named; or the file would be too large.
    """
    _check_size(lowered.fused)
    with _traced_once():
        model = to_onnx(lowered.fused, example_inputs, _TRANSLATIONS, lowered.shapes)
    _name_nodes(model, lowered)
    _drop_unread_outputs(model)
    model.functions.extend(model_local_functions())
    _set_opset(model, DOMAIN, 1)
    model.producer_name = "binarize"
    onnx.checker.check_model(model)
    return model


def _check_size(module: nn.Module) -> None:
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    if size > MAX_BYTES:
        raise UnsupportedModelError(
            f"its weights take {size / 1e9:.1f} GB, and an ONNX file holds {MAX_BYTES / 1e9:.1f} GB at most",
            hint="--linear all makes its linear layers binary, a 32nd of their size",
        )


def to_onnx(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    translations: dict[Any, Any] | None = None,
    shapes: Shapes | None = None,
) -> onnx.ModelProto:
    """`module` as ONNX with a symbolic batch and without the exporter's notes.

    Args:
        translations: ONNX builders of custom torch ops.
        shapes: which dimensions may differ, by default the batch.

    Raises:
        UnsupportedModelError: an operator has no ONNX form; names it.
    """
    inputs = float_inputs(example_inputs)
    names = ["input"] if len(inputs) == 1 else [f"input_{i}" for i in range(len(inputs))]
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()), _signatures_read_once():
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic_batch(inputs) if shapes is None else shapes,
                input_names=names,
                custom_translation_table=translations,
                verbose=False,
            )
    except Exception as error:
        reasons = [line for line in str(error).splitlines() if "No ONNX function" in line or "Error" in line]
        raise UnsupportedModelError(
            f"the model has no ONNX form: {(reasons or [type(error).__name__])[0].strip()[:300]}"
        ) from error
    assert program is not None and program.exported_program is not None
    model = program.model_proto  # made anew at each reading
    _strip(model)
    name_outputs(model, output_names(program.exported_program, len(model.graph.output)))
    return model


def write_onnx(model: onnx.ModelProto, path: str | Path) -> int:
    """Write `model` to `path` atomically; returns the file's size in bytes."""
    data = model.SerializeToString()
    with atomic_output(path) as temporary:
        temporary.write_bytes(data)
    return len(data)


@cache
def _operators() -> Any:
    """The domain's operators for onnxscript, whose schemas must be registered first."""
    parameter, attribute = defs.OpSchema.FormalParameter, defs.OpSchema.Attribute
    types, optional = defs.OpSchema.AttrType, defs.OpSchema.FormalParameterOption.Optional

    def register(name: str, inputs: dict[str, str], outputs: dict[str, str], attributes: dict[str, Any]) -> None:
        used = {*inputs.values(), *outputs.values()} & {"stream", "own"}
        defs.register_schema(
            defs.OpSchema(
                name,
                DOMAIN,
                1,
                inputs=[parameter(n, t) for n, t in inputs.items()],
                outputs=[parameter(n, t, param_option=optional) for n, t in outputs.items()],
                type_constraints=[(t, ["tensor(float)", "tensor(float16)"], "") for t in sorted(used)],
                attributes=[attribute(n, t, required=False) for n, t in attributes.items()],
            )
        )

    floats = ("scale", "bias", "gamma", "slope", "shift", "next_threshold", "gate", "factor")
    parameters = dict.fromkeys(floats, "tensor(float)")

    def typed(*names: str, **others: str) -> dict[str, str]:
        return {n: others.get(n, parameters.get(n, "stream")) for n in names}

    epilogue = ("slope", "shift", "next_threshold")
    integers = dict.fromkeys(("channels", "group", *Terms._fields), types.INT)
    both = {"y": "stream", "next_bits": "tensor(uint64)"}
    window = dict.fromkeys(("kernel_shape", "strides", "pads"), types.INTS)
    register("Pack", {"x": "stream", "threshold": "tensor(float)"}, {"bits": "tensor(uint64)"}, {})
    register(
        "BinaryConv2d",
        dict.fromkeys(("bits", "weight"), "tensor(uint64)")
        | typed("scale", "bias", "link", "gamma", "residual", *epilogue, "gate", "factor"),
        both,
        integers | dict.fromkeys(("strides", "pads", "dilations"), types.INTS),
    )
    inputs = typed("x", "gate", "scale", "bias", "residual", *epilogue, x="own")
    register("Activate", inputs, both, {"channels": types.INT})
    register("ActivateLink", inputs | typed("gamma"), both, {"channels": types.INT})
    register("Place", typed("x", "into"), typed("y"), dict.fromkeys(("first", "channels"), types.INT))
    gathered = typed("a", "b", "channels", channels="tensor(int64)")
    register("GatherChannels", gathered, typed("y"), {"channels_a": types.INT})
    gates = dict.fromkeys(("reduce", "reduce_bias", "expand", "expand_bias"), "tensor(float)")
    register("Gate", typed("x") | gates, {"factor": "tensor(float)"}, dict.fromkeys(("silu", "hard"), types.INT))
    register("MaxPool", typed("x"), typed("y"), window | {"dilations": types.INTS})
    register("AveragePool", typed("x"), typed("y"), window | {"count_include_pad": types.INT})
    return values.Opset(DOMAIN, 1)


def _translate_pack(x: Any, threshold: Any) -> Any:
    return _operators().Pack(x, threshold)


def _translate_conv(*arguments: Any) -> Any:
    *tensors, ints, terms = arguments
    g = geometry_from_ints(list(ints))
    return _operators().BinaryConv2d(
        *tensors,
        channels=g.in_channels,
        group=g.groups,
        strides=list(g.stride),
        pads=list(g.pads),
        dilations=list(g.dilation),
        **Terms(*terms)._asdict(),
    )


def _translate_activate(x: Any, *parameters: Any) -> Any:
    *tensors, channels = parameters
    return _operators().Activate(x, *tensors, channels=channels)


def _translate_activate_link(x: Any, *parameters: Any) -> Any:
    *tensors, channels = parameters
    return _operators().ActivateLink(x, *tensors, channels=channels)


def _translate_place(x: Any, into: Any, first: int, channels: int) -> Any:
    return _operators().Place(x, into, first=first, channels=channels)


def _translate_gather_channels(a: Any, b: Any, channels: Any, channels_a: int) -> Any:
    return _operators().GatherChannels(a, b, channels, channels_a=channels_a)


def _translate_gate(x: Any, *parameters: Any) -> Any:
    *tensors, silu, hard = parameters
    return _operators().Gate(x, *tensors, silu=int(silu), hard=int(hard))


def _translate_pool(
    x: Any,
    mode: str,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    count_include_pad: bool,
) -> Any:
    window = {"kernel_shape": list(kernel), "strides": list(strides), "pads": list(pads)}
    if mode == "max":
        return _operators().MaxPool(x, **window, dilations=list(dilations))
    return _operators().AveragePool(x, **window, count_include_pad=int(count_include_pad))


_TRANSLATIONS = {
    PACK: _translate_pack,
    PACKED_CONV: _translate_conv,
    ACTIVATE: _translate_activate,
    ACTIVATE_LINK: _translate_activate_link,
    POOL: _translate_pool,
    PLACE: _translate_place,
    GATHER_CHANNELS: _translate_gather_channels,
    GATE: _translate_gate,
}


def _signatures_read_once() -> contextlib.AbstractContextManager[Any]:
    """The exporter asks 500 functions for their signatures at every call, and each parses its source again to tell."""
    remembered = _remembered_signature()
    if remembered is None:
        return contextlib.nullcontext()
    return mock.patch.object(values.TracedOnnxFunction, "function_ir", remembered)


@cache
def _remembered_signature() -> property | None:
    """What tells a function's signature from the second time on; None if this onnxscript has another way."""
    told = getattr(getattr(values, "TracedOnnxFunction", None), "function_ir", None)
    return property(cache(told.fget)) if isinstance(told, property) and told.fget is not None else None


def _traced_once() -> contextlib.AbstractContextManager[Any]:
    """The exporter traces a program again to decompose what ONNX has no form for, also where there is nothing of it.

    For fused graphs alone: they are functional. In others that tracing also takes apart what writes, and composite
    operators (`chunk`, `narrow`) whose ONNX forms it never lets come to use.
    """
    decompose = getattr(_fx_passes, "decompose_with_registry", None)
    if decompose is None:  # this torch does it elsewhere
        return contextlib.nullcontext()

    def where_needed(exported_program: torch.export.ExportedProgram, registry: Any) -> torch.export.ExportedProgram:
        calls = {node.target for node in exported_program.graph.nodes if node.op == "call_function"}
        plain = all(isinstance(call, OpOverload | BuiltinFunctionType) for call in calls)  # no graph inside a graph
        if plain and all(registry.is_registered(call) for call in calls - {operator.getitem}):
            return exported_program
        return decompose(exported_program, registry)

    return mock.patch.object(_fx_passes, "decompose_with_registry", where_needed)


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they hold source paths of the user's machine and weigh more than small nets."""
    graph = model.graph
    for holder in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if hasattr(holder, "metadata_props"):
            del holder.metadata_props[:]
        holder.doc_string = ""
    del graph.value_info[:]


def _name_nodes(model: onnx.ModelProto, lowered: Lowered) -> None:
    """Binary convs carry their module's path as node name, so that profiles and Netron speak the user's language."""
    convs = packed_convs(lowered.fused)
    nodes = binary_nodes(model)
    assert len(nodes) == len(convs), f"{len(convs)} convs became {len(nodes)} nodes"
    used: set[str] = set()
    for node, conv in zip(nodes, convs, strict=True):
        name = str(conv.node.meta["path"])
        node.name = name if name not in used else f"{name}#{len(used)}"
        used.add(node.name)


def binary_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The model's BinaryConv2d nodes, in order of execution."""
    return own_nodes(model, "BinaryConv2d")


def own_nodes(model: onnx.ModelProto, *op_types: str) -> list[onnx.NodeProto]:
    """The model's nodes of these operators of `ai.binarize`, in order of execution."""
    return [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in op_types]


def _drop_unread_outputs(model: onnx.ModelProto) -> None:
    """An output nobody reads gets no name, so that the kernel does not write it; both stay listed (docs/ops.md)."""
    read = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    for node in own_nodes(model, "BinaryConv2d", "Activate", "ActivateLink"):
        outputs = [name if name in read else "" for name in node.output]
        del node.output[:]
        node.output.extend(outputs)


def _set_opset(model: onnx.ModelProto, domain: str, version: int) -> None:
    for opset in list(model.opset_import):
        if opset.domain not in ("", domain):
            model.opset_import.remove(opset)
    if all(opset.domain != domain for opset in model.opset_import):
        model.opset_import.add(domain=domain, version=version)
