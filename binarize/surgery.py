"""Surgery: the list of passes that turns a float module into a trainable binary one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from binarize.config import Config
from binarize.errors import UsageError
from binarize.passes.balance_residuals import BalanceResiduals
from binarize.passes.base import Pass, PassContext, run_passes
from binarize.passes.capture import capture
from binarize.passes.convert_linears import ConvertLinears
from binarize.passes.insert_batch_norm import InsertBatchNorm
from binarize.passes.insert_elastic_links import InsertElasticLinks
from binarize.passes.plan import Plan, check_strict
from binarize.passes.probe import Probe
from binarize.passes.replace_activations import ReplaceActivations
from binarize.passes.replace_convs import ReplaceConvs
from binarize.report import Report

SURGERY_PASSES: tuple[Pass, ...] = (
    Plan(),
    ConvertLinears(),
    ReplaceActivations(),
    ReplaceConvs(),
    InsertBatchNorm(),
    BalanceResiduals(),
    InsertElasticLinks(),
)


def plan_model(model: nn.Module, example_inputs: tuple[Tensor, ...], config: Config) -> Report:
    """What surgery would decide about every conv of `model`, which is left as it is."""
    return report_of(binarize_model(model, example_inputs, config))


def report_of(module: nn.Module) -> Report:
    """The report that a binarized `module` carries; UsageError if it is not one."""
    report = getattr(module, "report", None)
    if not isinstance(report, Report):
        raise UsageError(f"{type(module).__name__} was not made by binarize.apply", hint="call binarize.apply first")
    return report


def binarize_model(model: nn.Module, example_inputs: tuple[Tensor, ...], config: Config) -> GraphModule:
    """A binary copy of `model`, an fx `GraphModule` with the original's parameter names and a `.report`."""
    like = next(model.parameters(), torch.zeros(1))
    example_inputs = tuple(x.to(like.device) for x in example_inputs)
    model = copy.deepcopy(model)
    context = PassContext(config, probe=Probe(model, example_inputs))
    captured = capture(model, example_inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # layers that surgery adds start alike in every process
        module, done = run_passes(SURGERY_PASSES, captured, context)
    decisions = list(context.decisions.values())
    if config.surgery.strict:
        check_strict(decisions)
    report = Report(
        type(model).__name__, config.to_dict(), decisions, done, float_linear_macs=context.float_linear_macs
    )
    module.report = report  # type: ignore[assignment]
    module.example_shapes = [list(x.shape) for x in example_inputs]  # type: ignore[assignment]
    return module


def default_example_inputs(model: nn.Module, input_size: tuple[int, ...] | None = None) -> tuple[Tensor, ...]:
    """Two random images of `input_size` (C, H, W), by default of the first conv's channels and 224 x 224."""
    if input_size is None:
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        input_size = (first.in_channels if first is not None else 3, 224, 224)
    if len(input_size) != 3 or min(input_size) < 1:
        raise UsageError(f"input size {input_size} is not C,H,W", hint="for example --input-size 3,224,224")
    like = next(model.parameters(), torch.zeros(1))
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, *input_size, generator=generator).to(like.device, like.dtype),)
