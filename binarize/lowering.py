"""Lowering: a trained binary module becomes a functional graph of a few fused, bit-packed operators."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen
from torch.utils._pytree import tree_structure

from binarize.config import Config
from binarize.errors import BinarizeError, UnsupportedModelError
from binarize.nn.materialise import let_go_of_history
from binarize.passes.absorb_shifts import AbsorbShifts
from binarize.passes.base import Pass, PassContext, run_passes
from binarize.passes.cancel_transposes import CancelTransposes
from binarize.passes.choose_layout import ChooseLayout
from binarize.passes.decompose_unfused import DecomposeUnfused
from binarize.passes.drop_aliases import DropAliases
from binarize.passes.drop_expands import DropExpands
from binarize.passes.fuse_epilogue import FuseEpilogue
from binarize.passes.fuse_packs import FusePacks
from binarize.passes.lower_activations import LowerActivations
from binarize.passes.lower_convs import LowerConvs
from binarize.passes.lower_layers import lower_layers
from binarize.passes.lower_maps import LowerMaps
from binarize.passes.merge_equal import MergeEqual
from binarize.passes.narrow_stream import NarrowStream
from binarize.passes.swap_max_pool import SwapMaxPool

LOWERING_PASSES: tuple[Pass, ...] = (
    DropAliases(),
    LowerConvs(),
    FuseEpilogue(),
    SwapMaxPool(),
    DropExpands(),
    ChooseLayout(),
    LowerActivations(),
    LowerMaps(),
    CancelTransposes(),
    MergeEqual(),
    FusePacks(),
    AbsorbShifts(),
    NarrowStream(),
    DecomposeUnfused(),
)

SMALL = 1 << 14
"""Elements of a tensor that is compared with others, to be stored once: thresholds, scales, biases."""

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
ATTENTION_RANK = 4
_AVERAGE_POOLS = {torch.ops.aten.avg_pool2d.default: 2, torch.ops.aten.avg_pool3d.default: 3}
_POOL_DEFAULTS: tuple[Any, ...] = ([], 0, False, True, None)
"""Stride, padding, ceiling mode, whether padding counts, divisor."""

IN_PARTS = "name a folder instead of an .onnx file: a model that is not one graph is then exported in parts"


@dataclass(frozen=True)
class Lowered:
    """The two functional graphs of a trained model.

    Attributes:
        original: one node per layer, plain floats; every value of the trained model can be read off it.
        fused: packed and fused; a packed conv's `meta["origin"]` names the node of `original` it computes.
        passes: a line per lowering pass.
        shapes: `torch.export`'s description of which dimensions of the inputs may differ.
    """

    original: GraphModule
    fused: GraphModule
    passes: list[str]
    shapes: Shapes

    @property
    def takes_one_batch_size(self) -> bool:
        """Whether the model's code left no other than that of the example."""
        return not any(self.shapes)


def lower(
    module: nn.Module, example_inputs: tuple[Tensor, ...], config: Config | None = None, *, any_size: bool = False
) -> Lowered:
    """Lower `module` (eval mode) for inputs shaped like `example_inputs`, with any batch where its code allows that.

    Args:
        config: its table [export] counts.
        any_size: let maps have any size, too, where the model does.

    Raises:
        UnsupportedModelError: `torch.export` cannot represent the model; its reason is passed on.
    """
    let_go_of_history(module)
    module = copy.deepcopy(module).cpu().float().eval()
    lower_layers(module)
    example_inputs = float_inputs(example_inputs)
    shapes = _any_size(example_inputs) if any_size else dynamic_batch(example_inputs)
    try:
        original = _functional(module, example_inputs, shapes)
    except UnsupportedModelError as error:
        if any_size or not _batch_is_constrained(error):
            raise
        shapes = tuple({} for _ in example_inputs)
        original = _functional(module, example_inputs, shapes)
    context = PassContext(config or Config())
    fused, done = run_passes(LOWERING_PASSES, copy.deepcopy(original), context)
    for graph_module in (original, fused):
        _reshape_views(graph_module)
    return Lowered(
        original, _lean(fused, context).eval(), [f"{name}: {changes}" for name, changes in done.items()], shapes
    )


def _lean(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Without tensors that the graph does not use, with one of all equal small ones, and what became equal by that.

    `torch.export` makes an input of every tensor that a module holds, and takes its time for each.
    """
    graph_module.graph.eliminate_dead_code()
    first_of: dict[Any, str] = {}
    for node in graph_module.graph.find_nodes(op="get_attr"):
        value = operator.attrgetter(node.target)(graph_module)
        if value.numel() <= SMALL:
            key = (value.dtype, value.shape, value.requires_grad, value.numpy(force=True).tobytes())
            node.target = first_of.setdefault(key, node.target)
    MergeEqual().run(graph_module, context)
    return GraphModule(graph_module, graph_module.graph)


def _reshape_views(graph_module: GraphModule) -> None:
    """Views become reshapes: `torch.export` planned them on strides that a run need not have."""
    for node in graph_module.graph.nodes:
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = torch.ops.aten.reshape.default
    graph_module.recompile()


def float_inputs(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """`inputs` on the CPU and, where floating, in float32: what the kernels compute in."""
    other = next((x for x in inputs if not isinstance(x, Tensor)), None)
    if other is not None:
        raise UnsupportedModelError(
            f"a model in one file takes tensors, and this one a {type(other).__name__}", hint=IN_PARTS
        )
    return tuple(x.detach().cpu().float() if x.is_floating_point() else x.detach().cpu() for x in inputs)


Shapes = tuple[dict[int, object], ...]
"""Which dimensions of each input may differ, in `torch.export`'s terms."""


def dynamic_batch(example_inputs: tuple[Tensor, ...]) -> Shapes:
    """`torch.export`'s description of a common dynamic first dimension."""
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    return tuple({0: batch} for _ in example_inputs)


def _batch_is_constrained(error: UnsupportedModelError) -> bool:
    """Whether `torch.export` cannot show that the code is good for every batch, as where it chunks along it (RAFT)."""
    from torch._dynamo.exc import UserError, UserErrorType

    cause = error.__cause__
    return isinstance(cause, UserError) and cause.error_type is UserErrorType.CONSTRAINT_VIOLATION


def _any_size(example_inputs: tuple[Tensor, ...]) -> Shapes:
    """Every dimension but the channels may differ where the model lets it."""
    return tuple({d: torch.export.Dim.AUTO for d in range(x.dim()) if d != 1} for x in example_inputs)


def _functional(module: nn.Module, example_inputs: tuple[Tensor, ...], shapes: Shapes) -> GraphModule:
    variadic = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())
    described: Any = (shapes,) if variadic else shapes
    try:
        program = torch.export.export(_as_code(module), example_inputs, dynamic_shapes=described)
        graph_module = program.run_decompositions({}).module(check_guards=False)
    except BinarizeError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedModelError(
            f"torch.export cannot represent the model: {reason}",
            hint=IN_PARTS,
        ) from error
    assert isinstance(graph_module, GraphModule)
    _leave_tensors(graph_module)
    _rename_constants(graph_module)
    _flatten_attention(graph_module)
    _average_by_window(graph_module)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def _leave_tensors(graph_module: GraphModule) -> None:
    """Outputs that are no tensors, such as sizes, are left out: a file has no place for them."""
    output, codegen = graph_module.graph.output_node(), graph_module.graph._codegen
    leaves: Any = output.args[0]
    tensors = tuple(x for x in leaves if isinstance(x, Node) and isinstance(x.meta.get("val"), Tensor))
    if len(tensors) == len(leaves) or not isinstance(codegen, _PyTreeCodeGen):
        return
    if not tensors:
        raise UnsupportedModelError("the model gives no tensor", hint="its forward has to return one")
    output.args = (tensors,)
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=tree_structure(tensors))


def _as_code(module: nn.Module) -> nn.Module:
    """`module` run by its code, not node by node: nodes hold lists as constants, and some functions write to lists.

    `torch.export` interprets whatever is a `GraphModule`; what this returns shares everything but the class.
    """
    if not isinstance(module, GraphModule):
        return module
    plain: nn.Module = nn.Module.__new__(
        type(module.__class__.__name__, (nn.Module,), {"forward": type(module).forward})
    )
    plain.__dict__ = module.__dict__
    return plain


def _flatten_attention(graph_module: GraphModule) -> None:
    """Attention over windows, which has more than one batch dimension, gets one: the exporter knows no other."""
    for node in graph_module.graph.find_nodes(op="call_function", target=ATTENTION):
        shape = node.meta["val"].shape
        if len(shape) <= ATTENTION_RANK or len(node.args) > 3 or "attn_mask" in node.kwargs:
            continue
        with graph_module.graph.inserting_before(node):
            for position, operand in enumerate(node.args[:3]):
                inner = operand.meta["val"].shape[1 - ATTENTION_RANK :]
                flat = graph_module.graph.call_function(torch.ops.aten.reshape.default, (operand, [-1, *inner]))
                node.update_arg(position, flat)
        with graph_module.graph.inserting_after(node):
            whole = graph_module.graph.call_function(torch.ops.aten.reshape.default, (node, [-1, *shape[1:]]))
        node.replace_all_uses_with(whole, delete_user_cb=lambda user, whole=whole: user is not whole)
        whole.meta["val"] = node.meta["val"]


def _average_by_window(graph_module: GraphModule) -> None:
    """A pool with a divisor of its own becomes an average over whole windows and a factor: the exporter drops it.

    With a ceiling its last windows are smaller in ways of their own; the proof then refuses the file.
    """
    for target, dims in _AVERAGE_POOLS.items():
        for node in graph_module.graph.find_nodes(op="call_function", target=target):
            settings: list[Any] = list(node.args)
            x, kernel, *others = settings
            stride, padding, ceiling, _, divisor = (*others, *_POOL_DEFAULTS[len(others) :])
            if divisor is None or ceiling:
                continue
            window = math.prod(kernel if len(kernel) == dims else kernel * dims)
            with graph_module.graph.inserting_after(node):
                scaled = graph_module.graph.call_function(torch.ops.aten.mul.Tensor, (node, window / divisor))
            scaled.meta = dict(node.meta)
            node.replace_all_uses_with(scaled, delete_user_cb=lambda user, scaled=scaled: user is not scaled)
            node.args = (x, kernel, stride, padding, False, True)


def _rename_constants(graph_module: GraphModule) -> None:
    """Give the constants that code made itself, such as a list it indexes with, names that a next export will not use.

    `torch.export` numbers them per module, anew each time, and does not look whether a name is taken.
    """
    count = itertools.count()
    for node in graph_module.graph.find_nodes(op="get_attr"):
        owner, _, name = node.target.rpartition(".")
        if name.startswith("lifted_tensor_"):
            target = f"constant_{next(count)}"
            graph_module.register_buffer(target, getattr(graph_module.get_submodule(owner), name), persistent=False)
            node.target = target
