"""`binarize inspect`: what would become of every conv, without changing anything."""

from __future__ import annotations

from binarize.cli import options
from binarize.cli.output import Output

INSPECT_EXAMPLES = (
    "binarize inspect resnet50.pth",
    "binarize inspect net.pt --arch my.models:net --input-size 3,32,32",
    "binarize inspect mobilenet_v2.pth --recipe bireal --keep 'features.18.*' --json",
)


def inspect(
    output: Output,
    model: options.ModelArgument,
    *,
    arch: options.ArchOption = None,
    plan: options.PlanOptions,
    input_size: options.SizeOption = None,
    trust_pickle: options.TrustOption = False,
) -> None:
    """Show the plan: every conv, whether it becomes binary, and why."""
    size = options.parse_size(input_size)
    settled = plan.settle()
    from binarize import api
    from binarize.cli import render
    from binarize.loading import load_model
    from binarize.surgery import default_example_inputs

    loaded = load_model(model, arch, trust_pickle=trust_pickle)
    report = api.inspect(loaded.module, settled, default_example_inputs(loaded.module, size))
    source = render.source_of(loaded)
    render.show_notes(output, source)
    render.show_decisions(output, report)
    render.show_summary(output, report)
    output.result({"source": source, "report": report.to_dict()}, brief=len(report.binarized))
