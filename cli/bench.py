"""`binarize bench`: latency and size of ONNX files, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from binarize.cli.output import Output

if TYPE_CHECKING:
    from binarize.bench import Benchmark

BENCH_EXAMPLES = (
    "binarize bench net.onnx",
    "binarize bench net.onnx --against float.onnx --threads 1 --runs 100",
    "binarize bench net.onnx --against float.onnx --batch 8 --json",
)


def bench(
    output: Output,
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="The model to time.", show_default=False)],
    against: Annotated[
        Path | None, typer.Option(help="Another ONNX file, usually the float model.", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
    runs: Annotated[int, typer.Option(min=20, help="Timed runs of each file, after warm-up.")] = 50,
    batch: Annotated[int, typer.Option(min=1, help="Images per run.")] = 1,
) -> None:
    """Time ONNX files in alternation in one process, and say which is faster and by how much."""
    from binarize.bench import benchmark

    files = {file.stem: file}
    if against is not None:
        files[against.stem if against.stem != file.stem else str(against)] = against
    result = benchmark(files, threads=threads, runs=runs, batch=batch, progress=output.progress)
    _show(output, result)
    output.result(result.to_dict(), brief=f"{result.contenders[0].latency.median:.4f}")


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
