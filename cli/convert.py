"""`binarize convert`: the whole way from a float model to a verified binary ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from binarize.cli import options
from binarize.cli.output import Output

if TYPE_CHECKING:
    from binarize.api import Conversion
    from binarize.training.data import ImageDataset

CONVERT_EXAMPLES = (
    "binarize convert resnet50.pth --out rn50.onnx",
    "binarize convert resnet18.pth --data imagenet/ --epochs 8 --out rn18.onnx",
    "binarize convert net.safetensors --arch my.models:net --keep 'head.*' --out net.onnx",
    "binarize convert fasterrcnn.pth --out detector/",
    "binarize convert net.pt --arch timm:resnet26 --config binarize.toml --set seed=1 --out net.onnx --json",
)


def convert(
    output: Output,
    model: options.ModelArgument,
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The ONNX file to write; a folder for detectors.", show_default=False)
    ],
    arch: options.ArchOption = None,
    plan: options.PlanOptions,
    data: options.DataOption = None,
    val: options.ValOption = None,
    epochs: options.EpochsOption = None,
    stem: options.EndsOption = None,
    stream: options.StreamOption = None,
    input_size: options.SizeOption = None,
    seed: options.SeedOption = None,
    trust_pickle: options.TrustOption = False,
    restart: options.RestartOption = False,
) -> None:
    """Turn a float model into a binary ONNX file: load, binarize, fine-tune on --data, export, verify.

    A model that no single graph holds, such as a detector, becomes a folder of parts; docs/parts.md.

    Beside FILE.onnx a folder FILE.run keeps configuration, report, history and checkpoints; the same command
    again goes on from the last checkpoint.
    """
    from binarize import api
    from binarize.training.data import open_dataset

    size = options.parse_size(input_size)
    settled = plan.settle(epochs=epochs, stem=stem, stream=stream, seed=seed)
    train_set, val_set = (open_dataset(data, split="train"), options.held_out(data, val)) if data else (None, None)
    if data is not None:
        output.resumes = options.RESUMES
    _warn(output, train_set, val_set)
    conversion = api.convert(
        model,
        out,
        arch=arch,
        config=settled,
        data=train_set,
        val_data=val_set,
        input_size=size,
        trust_pickle=trust_pickle,
        restart=restart,
        progress=output.progress,
    )
    _show(output, conversion, data)


def _warn(output: Output, train_set: ImageDataset | None, val_set: ImageDataset | None) -> None:
    if train_set is None:
        output.warning(
            "without --data the model is only converted: it is valid, but its accuracy needs fine-tuning "
            "(add --data IMAGES)"
        )
    elif val_set is None:
        output.warning("the data has no held-out split, so accuracy is not measured (add --val IMAGES)")


def _show(output: Output, conversion: Conversion, data: Path | None) -> None:
    from binarize.cli import render

    report, results = conversion.report, conversion.report.results
    follow = next_command(conversion.path, data)
    render.show_notes(output, results.get("source"))
    render.show_file(output, report, conversion.path)
    output.text(f"wrote {conversion.path} in {results['seconds']:.1f} s; run folder {conversion.run}", style="bold")
    output.text(f"next: {follow}")
    document: dict[str, Any] = {"out": conversion.path, "run": conversion.run, "next": follow}
    output.result({**document, "report": report.to_dict()}, brief=conversion.path)


def next_command(path: Path, data: Path | None) -> str:
    """What to type after a conversion."""
    if path.is_dir():
        return f"in Python, model = binarize.assemble({str(path)!r})"
    return f"binarize bench {path}" if data is None else f"binarize eval {path} --data {data}"
