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
    "binarize export rn18.pt --stem int8 --data imagenet/val --out rn18.onnx",
)


def export(
    output: Output,
    module: Annotated[
        Path,
        typer.Argument(metavar="FILE.pt", help="A binary module written by `finetune`.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The ONNX file to write; a folder for detectors.", show_default=False)
    ],
    arch: options.ArchOption = None,
    stem: options.EndsOption = None,
    stream: options.StreamOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Images that set the ranges of an int8 stem.", show_default=False)
    ] = None,
) -> None:
    """Write a fine-tuned binary module as ONNX with packed weights, and prove the two equal.

    A model that no single graph holds, such as a detector, becomes a folder of parts; docs/parts.md.
    """
    from binarize import api
    from binarize.binary_file import load_binary
    from binarize.cli import render
    from binarize.cli.convert import next_command
    from binarize.config import Config
    from binarize.files import check_not_input
    from binarize.surgery import report_of

    check_not_input(out, module)
    binary = load_binary(module, arch)
    record = report_of(binary)
    given = {"export": options.export_settings(stem, stream)}
    record.config = Config().updated(record.config).updated(given).to_dict()
    images = None if data is None else api.some_images(data, binary)
    report = api.export(binary, out, images=images, progress=output.progress)
    render.show_file(output, report, out)
    output.text(f"wrote {out}", style="bold")
    follow = next_command(out, None)
    output.text(f"next: {follow}")
    output.result({"out": out, "next": follow, "report": report.to_dict()}, brief=out)
