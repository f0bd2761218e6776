"""`binarize inspect`: what would become of every conv, without changing anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from binarize.cli import options
from binarize.cli.output import Output
from binarize.errors import UsageError

if TYPE_CHECKING:
    from binarize.report import Decision

INSPECT_EXAMPLES = (
    "binarize inspect resnet50.pth",
    "binarize inspect net.pt --arch my.models:net --input-size 3,32,32 --svg net.svg",
    "binarize inspect mobilenet_v2.pth --recipe bireal --keep 'features.18' --keep rule:depthwise --json",
    "binarize inspect convnext.pth --linear spatial --wide",
)


def inspect(
    output: Output,
    model: options.ModelArgument,
    *,
    arch: options.ArchOption = None,
    plan: options.PlanOptions,
    input_size: options.SizeOption = None,
    wide: Annotated[bool, typer.Option("--wide", help="Show every fact about a conv, in long lines.")] = False,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg",
            metavar="FILE",
            help="Write a picture: the original graph beside the binary one, with links as arcs.",
            show_default=False,
        ),
    ] = None,
    trust_pickle: options.TrustOption = False,
) -> None:
    """Show the plan: every conv, whether it becomes binary, and why.

    Columns: what it becomes (binary, or the rule that keeps it float; docs/plan.md), kernel and channels, its share
    of the multiply-accumulates, the bytes of its weight before and after, and the form of its Elastic Link.
    """
    size = options.parse_size(input_size)
    settled = plan.settle()
    from binarize import api
    from binarize.cli import render
    from binarize.files import check_writable, write_text
    from binarize.loading import load_model
    from binarize.surgery import report_of

    if svg is not None:
        if svg.suffix.lower() != ".svg":
            raise UsageError("the picture is an SVG, and its name says otherwise", layer=str(svg), hint="--svg NET.svg")
        check_writable(svg)
    loaded = load_model(model, arch, trust_pickle=trust_pickle)
    settled, images = api.settle_preprocessing(settled, loaded.module)
    inputs, images = api.inputs_for(loaded.module, images, size)
    module = api.with_preprocessing(loaded.module, inputs, settled, images)
    report = report_of(module)
    source = render.source_of(loaded)
    render.show_notes(output, source)
    render.show_decisions(output, report, wide=wide)
    render.show_summary(output, report)
    if svg is not None:
        from binarize.drawing import draw_surgery

        write_text(svg, draw_surgery(loaded.module, module, inputs))
        output.text(f"wrote {svg}", style="bold")
    facts = report.to_dict() | {"decisions": [_facts(d) for d in report.decisions]}
    output.result({"source": source, "report": facts, "svg": svg}, brief=len(report.binarized))


def _facts(decision: Decision) -> dict[str, Any]:
    """A decision with what follows from it."""
    return {
        **decision.to_dict(),
        "packed_bytes": decision.packed_bytes if decision.binarized else None,
        "link_ratio": decision.link_ratio if decision.link != "none" else None,
    }
