"""A picture of what surgery did: the original graph beside the binary one, as an SVG that needs nothing else."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.fx import GraphModule

from binarize.drawing.sketch import sketch
from binarize.drawing.svg import Column, draw
from binarize.passes.capture import capture
from binarize.report import Report


def draw_surgery(model: nn.Module, module: nn.Module, example_inputs: tuple[Tensor, ...]) -> str:
    """`model` beside the binary `module` that surgery made of it, as an SVG document.

    Args:
        model: the float model, which stays as it is.
        module: from `apply`, with its report.
        example_inputs: those of `apply`.
    """
    report = module.report
    assert isinstance(report, Report)
    decisions = {decision.layer: decision for decision in report.decisions}
    captured = capture(copy.deepcopy(model), example_inputs)
    original = [(path, region.graph) for path, region in captured.regions.items()]
    binary = [(path, part.graph) for path, part in module.named_modules() if isinstance(part, GraphModule)]
    columns = (
        Column("original", sketch(original, decisions), "macs"),
        Column("binary", sketch(binary, decisions), "links"),
    )
    return draw(report, columns)


__all__ = ["draw_surgery"]
