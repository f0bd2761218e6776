"""The lowering passes in their order, and what they make of a module."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from binarize.config import Config
from binarize.errors import UnsupportedModelError
from binarize.example_inputs import Form
from binarize.lowering.functional import Shapes, functional_graph
from binarize.nn.materialise import let_go_of_history
from binarize.passes.absorb_shifts import AbsorbShifts
from binarize.passes.base import Pass, PassContext, run_passes
from binarize.passes.cancel_transposes import CancelTransposes
from binarize.passes.choose_layout import ChooseLayout
from binarize.passes.decompose_unfused import DecomposeUnfused
from binarize.passes.drop_aliases import DropAliases
from binarize.passes.drop_expands import DropExpands
from binarize.passes.flatten_convs import FlattenConvs
from binarize.passes.fuse_epilogue import FuseEpilogue
from binarize.passes.fuse_gates import FuseGates
from binarize.passes.fuse_packs import FusePacks
from binarize.passes.gather_channels import GatherChannels
from binarize.passes.grow_maps import GrowMaps
from binarize.passes.lower_activations import LowerActivations
from binarize.passes.lower_convs import LowerConvs
from binarize.passes.lower_layers import lower_layers
from binarize.passes.lower_maps import LowerMaps
from binarize.passes.merge_equal import MergeEqual
from binarize.passes.narrow_stream import NarrowStream
from binarize.passes.squeeze_links import SqueezeLinks
from binarize.passes.swap_max_pool import SwapMaxPool
from binarize.passes.whole_pools import reduce_whole_maps

LOWERING_PASSES: tuple[Pass, ...] = (
    DropAliases(),
    LowerConvs(),
    FuseEpilogue(),
    SwapMaxPool(),
    DropExpands(),
    FlattenConvs(),
    ChooseLayout(),
    LowerActivations(),
    LowerMaps(),
    CancelTransposes(),
    MergeEqual(),
    FuseGates(),
    FusePacks(),
    AbsorbShifts(),
    NarrowStream(),
    GatherChannels(),
    GrowMaps(),
    SqueezeLinks(),
    DecomposeUnfused(),
)

SMALL = 1 << 14
"""Elements of a tensor that is compared with others, to be stored once: thresholds, scales, biases."""


@dataclass(frozen=True)
class Lowered:
    """The two functional graphs of a trained model.

    Attributes:
        original: one node per layer, plain floats; every value of the trained model can be read off it.
        fused: packed and fused; `meta["origin"]` of a node names the one of `original` that has its value, if one has.
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
    module: nn.Module,
    example_inputs: tuple[Any, ...],
    config: Config | None = None,
    *,
    shapes: Shapes | None = None,
) -> Lowered:
    """Lower `module` (eval mode) for inputs shaped like `example_inputs`, with any batch where its code allows that.

    Args:
        example_inputs: what `module` takes. The graphs take the tensors in it, in order; numbers, flags and None that
            lie beside them are constants to the graphs.
        config: its table [export] counts.
        shapes: which dimensions may differ instead of one batch that all inputs share.

    Raises:
        UnsupportedModelError: `torch.export` cannot represent the model; its reason is passed on.
    """
    let_go_of_history(module)
    module = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
    lower_layers(module)
    reduce_whole_maps(module)
    form = Form.of(example_inputs)[0]
    example_inputs = float_inputs(example_inputs)
    taken = None if form == Form.of(example_inputs)[0] else form
    described = dynamic_batch(example_inputs) if shapes is None else shapes
    try:
        original = functional_graph(module, example_inputs, described, taken)
    except UnsupportedModelError as error:
        if shapes is not None or not _batch_is_constrained(error):
            raise
        described = tuple({} for _ in example_inputs)
        original = functional_graph(module, example_inputs, described, taken)
    context = PassContext(config or Config())
    fused, done = run_passes(LOWERING_PASSES, _copy(original), context)
    return Lowered(
        original, _lean(fused, context).eval(), [f"{name}: {changes}" for name, changes in done.items()], described
    )


def _copy(original: GraphModule) -> GraphModule:
    """`original` for passes to change: what they keep or replace has its origin, what they make has none."""
    graph_module = copy.deepcopy(original)
    for node in graph_module.graph.nodes:
        node.meta["origin"] = node.name
    return graph_module


def _lean(graph_module: GraphModule, context: PassContext) -> GraphModule:
    """Without tensors that the graph does not use, with one of all equal small ones, and what became equal by that.

    `torch.export` makes an input of every tensor that a module holds, and takes its time for each.
    """
    graph_module.graph.eliminate_dead_code()
    first_of: dict[Any, str] = {}
    for node in graph_module.graph.find_nodes(op="get_attr"):
        value = operator.attrgetter(node.target)(graph_module)
        if value.numel() <= SMALL:
            key = (value.dtype, value.shape, value.numpy(force=True).tobytes())
            node.target = first_of.setdefault(key, node.target)
    MergeEqual().run(graph_module, context)
    return GraphModule(graph_module, graph_module.graph)


def float_inputs(inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The tensors in `inputs`, in order, on the CPU and, where floating, in float32: what the kernels compute in."""
    tensors = Form.of(inputs)[1]
    return tuple(x.detach().cpu().float() if x.is_floating_point() else x.detach().cpu() for x in tensors)


def dynamic_batch(example_inputs: tuple[Tensor, ...]) -> Shapes:
    """`torch.export`'s description of a common dynamic first dimension."""
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    return tuple({0: batch} if x.dim() else {} for x in example_inputs)


def _batch_is_constrained(error: UnsupportedModelError) -> bool:
    """Whether `torch.export` cannot show that the code is good for every batch, as where it chunks along it (RAFT)."""
    from torch._dynamo.exc import UserError, UserErrorType

    cause = error.__cause__
    return isinstance(cause, UserError) and cause.error_type is UserErrorType.CONSTRAINT_VIOLATION
