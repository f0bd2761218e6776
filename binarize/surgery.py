"""Surgery: the list of passes that turns a float module into a trainable binary one."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from binarize.config import Config
from binarize.errors import UnsupportedModelError, UsageError
from binarize.nn import BinaryConv
from binarize.nn.materialise import let_go_of_history
from binarize.passes.balance_residuals import BalanceResiduals
from binarize.passes.base import Pass, PassContext, run_passes
from binarize.passes.capture import capture
from binarize.passes.convert_linears import ConvertLinears
from binarize.passes.insert_batch_norm import InsertBatchNorm
from binarize.passes.insert_elastic_links import InsertElasticLinks
from binarize.passes.plain_norms import PlainNorms
from binarize.passes.plan import check_strict, plan
from binarize.passes.probe import Probe
from binarize.passes.replace_activations import ReplaceActivations
from binarize.passes.replace_convs import ReplaceConvs
from binarize.report import Report
from binarize.trees import read_structure, write_structure

SURGERY_PASSES: tuple[Pass, ...] = (
    ConvertLinears(),
    PlainNorms(),
    ReplaceActivations(),
    ReplaceConvs(),
    InsertBatchNorm(),
    BalanceResiduals(),
    InsertElasticLinks(),
)


def report_of(module: nn.Module) -> Report:
    """The report that a binarized `module` carries; UsageError if it is not one."""
    report = getattr(module, "report", None)
    if not isinstance(report, Report):
        raise UsageError(f"{type(module).__name__} was not made by binarize.apply", hint="call binarize.apply first")
    return report


def unwrapped(model: object) -> nn.Module:
    """The model in the wrappers that PyTorch puts around one: parallel, averaged, compiled.

    Raises:
        UsageError: it is no model.
        UnsupportedModelError: it has no Python code.
    """
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
        model = model.module
    compiled = getattr(model, "_orig_mod", None)
    if isinstance(compiled, nn.Module):
        return unwrapped(compiled)
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"a {type(model).__name__} is no model", hint="give a torch.nn.Module, with its weights loaded into it"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            "a TorchScript module has no Python code to work on", hint="give the model it was made from"
        )
    return model


def binarize_model(
    model: nn.Module, example_inputs: tuple[Any, ...], config: Config, *, inplace: bool = False
) -> nn.Module:
    """`model`, or a copy of it, made binary: the original's parameter names, and a `.report`.

    What one graph can hold is a `Region` (an fx `GraphModule`) in the place of its module: usually the model itself.
    """
    if any(isinstance(module, BinaryConv) for module in model.modules()):
        raise UsageError("the model is already binarized", hint="apply() takes the float model")
    let_go_of_history(model)
    model = model if inplace else copy.deepcopy(model)
    like = next(model.parameters(), torch.zeros(1))
    example_inputs = tree_map_only(Tensor, lambda x: x.to(like.device), example_inputs)
    leaves, structure = tree_flatten(example_inputs)
    described = write_structure(structure)
    captured = capture(model, example_inputs)
    context = PassContext(config, captured.recording, probe=Probe(model, example_inputs))
    plan(model, captured.recording.graph, context)
    if config.surgery.strict:
        check_strict(context.decisions.values())
    done: Counter[str] = Counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # layers that surgery adds start alike in every process
        for region in captured.regions.values():
            changes = run_passes(SURGERY_PASSES, region, context)[1]
            region.altered = any(changes.values())
            done.update(changes)
    report = Report(
        model=type(model).__name__,
        config=config.to_dict(),
        decisions=list(context.decisions.values()),
        passes=[f"{step}: {changes}" for step, changes in done.items()],
        untraced=list(captured.untraced.values()),
        float_linear_macs=context.float_linear_macs,
    )
    captured.put_back()
    model.report = report  # type: ignore[assignment]
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    model.example_shapes = [list(x.shape) for x in tensors]  # type: ignore
    # Any float tensor is as good as another; what else a model can take, nobody knows.
    others = {i: x for i, x in enumerate(leaves) if not isinstance(x, Tensor) or not x.is_floating_point()}
    model.example_values = tree_map_only(Tensor, torch.clone, others)  # type: ignore[assignment]
    model.example_structure = described  # type: ignore[assignment]
    return model


def example_like(
    shapes: Sequence[Sequence[int]], values: Mapping[int, Any], structure: str, fill: Callable[[Sequence[int]], Tensor]
) -> tuple[Any, ...]:
    """Inputs of the form of those that surgery saw, by what it noted in the module.

    Args:
        shapes: of all tensors, in order (`module.example_shapes`).
        values: by number of the leaf, what is no float tensor (`module.example_values`).
        structure: what holds them (`module.example_structure`).
        fill: makes a float tensor of a shape.
    """
    spec, left, leaves = read_structure(structure), iter(shapes), []
    for i in range(spec.num_leaves):
        shape = () if i in values and not isinstance(values[i], Tensor) else next(left)
        leaves.append(values[i] if i in values else fill(shape))
    inputs: tuple[Any, ...] = tree_unflatten(leaves, spec)
    return inputs
