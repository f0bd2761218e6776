"""`binarize bench`: latency and size of ONNX files, side by side."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from binarize.cli import options
from binarize.cli.output import Output

if TYPE_CHECKING:
    from binarize.bench import Benchmark

BENCH_EXAMPLES = (
    "binarize bench net.onnx",
    "binarize bench rn18.onnx --against resnet18.pth",
    "binarize bench net.onnx --against float.onnx --threads 1 --runs 100",
    "binarize bench net.onnx --against float.onnx --batch 8 --json",
)


def bench(
    output: Output,
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="The model to time.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(help="What to compare with: another ONNX file, or the float model's file.", show_default=False),
    ] = None,
    arch: options.ArchOption = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
    runs: Annotated[int, typer.Option(min=20, help="Timed runs of each file, after warm-up.")] = 50,
    batch: Annotated[int, typer.Option(min=1, help="Images per run.")] = 1,
) -> None:
    """Time ONNX files in alternation in one process, and say which is faster and by how much."""
    from binarize.bench import benchmark

    with tempfile.TemporaryDirectory() as folder:
        files = {file.stem: file}
        if against is not None:
            name = against.stem if against.stem != file.stem else against.name
            files[name] = _as_onnx(against, arch, file, Path(folder))
        result = benchmark(files, threads=threads, runs=runs, batch=batch, progress=output.progress)
    _show(output, result)
    output.result(result.to_dict(), brief=f"{result.contenders[0].latency.median:.4f}")


def _as_onnx(model: Path, arch: str | None, like: Path, folder: Path) -> Path:
    """`model` itself if it is an ONNX file, else the float model in it, exported for the inputs that `like` takes."""
    if model.suffix == ".onnx":
        return model
    from binarize.bench.float_onnx import float_onnx
    from binarize.loading import load_model
    from binarize.runtime import InferenceSession
    from binarize.surgery import default_example_inputs

    loaded = load_model(model, arch)
    channels, height, width = InferenceSession(like).get_inputs()[0].shape[1:]
    path = folder / "float.onnx"
    float_onnx(loaded.module, path, default_example_inputs(loaded.module, (channels, height, width)))
    return path


def _show(output: Output, result: Benchmark) -> None:
    machine = result.machine
    pinned = f"pinned to cores {', '.join(map(str, result.cores))}" if result.cores else "not pinned"
    output.text(
        f"{machine['cpu']}, kernels {machine['isa']}, onnxruntime {machine['onnxruntime']}; "
        f"{result.threads} thread(s), {pinned}; batch {result.batch}, {result.runs} runs each, in alternation"
    )
    output.table("", result.columns(), result.rows())
    for sentence in result.verdicts():
        output.text(sentence)
