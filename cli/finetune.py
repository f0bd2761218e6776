"""`binarize finetune`: binarize and train, without exporting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from binarize.cli import options
from binarize.cli.output import Output
from binarize.errors import UsageError

if TYPE_CHECKING:
    from binarize.report import Report

FINETUNE_EXAMPLES = (
    "binarize finetune resnet18.pth --data imagenet/ --out rn18.pt",
    "binarize finetune net.pth --arch my:net --data train.parquet --val test.parquet --out net.pt",
    "binarize finetune net.pth --arch my.models:net --data photos/ --set training.augment=crop --out net.pt",
)


def finetune(
    output: Output,
    model: options.ModelArgument,
    *,
    data: options.NeededDataOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="The binary module to write (.pt).", show_default=False)],
    arch: options.ArchOption = None,
    plan: options.PlanOptions,
    val: options.ValOption = None,
    epochs: options.EpochsOption = None,
    input_size: options.SizeOption = None,
    seed: options.SeedOption = None,
    trust_pickle: options.TrustOption = False,
    restart: options.RestartOption = False,
) -> None:
    """Binarize a float model and fine-tune it on --data with itself as teacher; write a .pt for `export`.

    Checkpoints lie in a folder FILE.run beside the output; the same command again goes on from them.
    """
    size = options.parse_size(input_size)
    settled = plan.settle(epochs=epochs, seed=seed)
    from binarize import api
    from binarize.binary_file import save_binary
    from binarize.cli import render
    from binarize.files import check_not_input, check_writable
    from binarize.loading import load_model
    from binarize.surgery import report_of
    from binarize.training.data import open_dataset

    check_writable(out)
    check_not_input(out, model)
    if out.suffix == ".onnx":
        raise UsageError("finetune writes a .pt, not ONNX", layer=str(out), hint="--out NAME.pt, then binarize export")
    loaded = load_model(model, arch, trust_pickle=trust_pickle)
    settled, images = api.settle_preprocessing(settled, loaded.module)
    render.show_notes(output, render.source_of(loaded))
    train_set, val_set = open_dataset(data, split="train"), options.held_out(data, val)
    if val_set is None:
        output.warning("the data has no held-out split, so accuracy is not measured (add --val IMAGES)")
    output.resumes = options.RESUMES
    with api.run_folder(out, settled, restart) as run:
        module = api.distill(
            loaded.module, train_set, val_set, settled, images, run, input_size=size, progress=output.progress
        )
        save_binary(out, module, loaded)
    _show(output, report_of(module), out, run, arch)


def _show(output: Output, report: Report, out: Path, run: Path, arch: str | None) -> None:
    from binarize.cli import render

    named = f" --arch {arch}" if arch else ""
    follow = f"binarize export {out}{named} --out {out.with_suffix('.onnx')}"
    render.show_summary(output, report)
    render.show_accuracy(output, report.results)
    seconds = report.results["training"]["train_seconds"]
    output.text(f"wrote {out} after {seconds:.1f} s of training; checkpoints in {run}", style="bold")
    output.text(f"next: {follow}")
    output.result({"out": out, "run": run, "next": follow, "report": report.to_dict()}, brief=out)
