"""`binarize export`: a fine-tuned binary module becomes a verified ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from binarize.cli import options
from binarize.cli.output import Output

EXPORT_EXAMPLES = (
    "binarize export rn18.pt --out rn18.onnx",
    "binarize export net.pt --arch my.models:net --out net.onnx --json",
)


def export(
    output: Output,
    module: Annotated[
        Path,
        typer.Argument(metavar="FILE.pt", help="A binary module written by `finetune`.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    arch: options.ArchOption = None,
) -> None:
    """Write a fine-tuned binary module as ONNX with packed weights, and prove the two equal."""
    from binarize import api
    from binarize.binary_file import load_binary
    from binarize.cli import render
    from binarize.files import check_writable

    check_writable(out)
    report = api.export(load_binary(module, arch), out, progress=output.progress)
    render.show_summary(output, report)
    render.show_size(output, report.results["size"], out)
    render.show_verification(output, report.results["verification"])
    output.text(f"wrote {out}", style="bold")
    output.text(f"next: binarize bench {out}")
    output.result({"out": out, "next": f"binarize bench {out}", "report": report.to_dict()}, brief=out)
