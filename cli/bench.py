"""`binarize bench`: latency, size and memory of ONNX files, side by side."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from binarize.cli import options
from binarize.cli.output import Output
from binarize.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from binarize.bench import Benchmark
    from binarize.bench.layers import LayerTime
    from binarize.bench.profile import Profile

BENCH_EXAMPLES = (
    "binarize bench net.onnx",
    "binarize bench rn18.onnx --against resnet18.pth --int8 --layers",
    "binarize bench net.onnx --against float.onnx --threads 1 --runs 100 --plot net.svg",
    "binarize bench net.onnx --profile --json",
)
CALIBRATION_IMAGES = 128
SLOWEST_NODES = 12
"""Nodes that the profile shows to people; `--json` has all."""


def bench(
    output: Output,
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="The model to time.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(help="What to compare with: another ONNX file, or the float model's file.", show_default=False),
    ] = None,
    arch: options.ArchOption = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also time the float model in static int8, which is made here.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Images that set the int8 ranges. Default: random; as fast.", show_default=False),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also each layer beside the others' same layer.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Also each file's time by operator and by node.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg|png|pdf", help="Draw the result.", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
    runs: Annotated[int, typer.Option(min=20, help="Timed runs of each file, after warm-up.")] = 50,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images per run. Default: what the files take at a time, else 1.", show_default=False),
    ] = None,
) -> None:
    """Time ONNX files in alternation, each in a process of its own, and say which is faster and by how much."""
    from binarize.bench import benchmark
    from binarize.bench.plot import check_plot, plot_benchmark

    if plot is not None:
        check_plot(plot)
    if data is not None and not int8:
        raise UsageError("--data sets the ranges of int8, which is not asked for", hint="add --int8")
    if arch is not None and (against is None or against.suffix == ".onnx"):
        raise UsageError("--arch belongs to a float model's file in --against", hint="add --against FILE.pt")
    with tempfile.TemporaryDirectory() as folder:
        files = _contenders(output, file, against, arch, int8, data, Path(folder))
        settings: dict[str, Any] = {"threads": threads, "runs": runs, "batch": batch, "progress": output.progress}
        result = benchmark(files, **settings)
        profiles, by_layer = _details(files, layers, profile, settings)
    _show(output, result)
    _show_layers(output, by_layer, list(files))
    _show_profiles(output, profiles if profile else {})
    if plot is not None:
        plot_benchmark(plot, result, by_layer)
        output.text(f"wrote {plot}")
    document = result.to_dict()
    if layers:
        from binarize.bench.layers import layers_document

        document["layers"] = layers_document(by_layer)
    if profile:
        document["profiles"] = {name: found.to_dict() for name, found in profiles.items()}
    output.result(document, brief=f"{result.contenders[0].latency.median:.4f}")


def _contenders(
    output: Output, file: Path, against: Path | None, arch: str | None, int8: bool, data: Path | None, folder: Path
) -> dict[str, Path]:
    """Name and file of everything that is timed; what has to be made is made in `folder`."""
    files = {file.stem: file}
    if against is not None:
        name = next(name for name in (against.stem, against.name, f"{against.name} (2)") if name not in files)
        files[name] = _as_onnx(against, arch, file, folder)
    if int8:
        from binarize.bench.int8 import int8_onnx

        name, source = list(files.items())[-1]
        images = None if data is None else _images(file, data)
        int8_onnx(source, folder / "int8.onnx", images, output.progress)
        files[f"{name} int8"] = folder / "int8.onnx"
    return files


def _as_onnx(model: Path, arch: str | None, like: Path, folder: Path) -> Path:
    """`model` itself if it is an ONNX file, else the float model in it, exported for the inputs that `like` takes."""
    from binarize.bench.float_onnx import float_onnx
    from binarize.example_inputs import default_example_inputs
    from binarize.loading import is_onnx_file, load_model
    from binarize.runtime import InferenceSession

    if is_onnx_file(model):
        return model
    loaded = load_model(model, arch)
    size = tuple(InferenceSession(like).get_inputs()[0].shape[1:])
    path = folder / "float.onnx"
    float_onnx(loaded.module, path, default_example_inputs(loaded.module, size))
    return path


def _images(file: Path, data: Path) -> np.ndarray:
    """Images at `data` as the network in `file` takes them, normalised as a binary file says."""
    from binarize.bench.sessions import image_shape, open_session
    from binarize.config import Config
    from binarize.training.finetune import Feed

    session = open_session(file, 1)
    toml = session.get_modelmeta().custom_metadata_map.get("binarize.config")
    config = Config().updated(tomllib.loads(toml), str(file)) if toml else Config()
    feed = Feed(options.everything(data), image_shape(session), config)
    return feed.sample(CALIBRATION_IMAGES).numpy()


def _details(
    files: dict[str, Path], layers: bool, profile: bool, settings: dict[str, Any]
) -> tuple[dict[str, Profile], list[LayerTime]]:
    """What ONNX Runtime's profiler tells, by file and by layer, as far as it was asked for."""
    if not (layers or profile):
        return {}, []
    from binarize.bench import profile as profiling
    from binarize.bench.layers import layer_times

    profiles = profiling.profile(files, **settings)
    return profiles, layer_times(profiles, files) if layers else []


def _show(output: Output, result: Benchmark) -> None:
    machine = result.machine
    pinned = f"pinned to cores {', '.join(map(str, result.cores))}" if result.cores else "not pinned"
    output.text(
        f"{machine['cpu']} ({machine['caches'] or 'caches unknown'}), kernels {machine['isa']}, "
        f"binarize {machine['binarize']}, onnxruntime {machine['onnxruntime']}; {result.threads} thread(s), {pinned}; "
        f"batch {result.batch}, {result.runs} runs each, in alternation"
    )
    output.table("", result.columns(), result.rows())
    for sentence in result.verdicts():
        output.text(sentence)


def _show_layers(output: Output, layers: list[LayerTime], names: list[str]) -> None:
    """A row per layer, with a column of speed-ups for every file but the first."""
    if not layers:
        return
    from binarize.bench.layers import slower_layers

    first, *others = names
    columns = ("layer", "operator", *(f"{name} ms" for name in names), *(f"vs {name}" for name in others))
    rows = []
    for layer in layers:
        times = [layer.milliseconds.get(name) for name in names]
        ratios = [layer.speedup(name) for name in others]
        figures = ["-" if time is None else f"{time:.3f}" for time in times]
        rows.append((layer.layer, layer.op, *figures, *("-" if r is None else f"{r:.2f}x" for r in ratios)))
    runs = len(layers[0].times[first])
    output.table(f"by layer, medians of {runs} runs (--json has minima and p90)", columns, rows)
    for name in others:
        slower = slower_layers(layers, name)
        lost = sum(layer.milliseconds[first] - layer.milliseconds[name] for layer in slower)
        listed = ", ".join(layer.layer for layer in slower) or "none"
        output.text(f"{first} is SLOWER than {name} in {len(slower)} of {len(layers)}: {listed} ({lost:.3f} ms lost)")


def _show_profiles(output: Output, profiles: dict[str, Profile]) -> None:
    """By operator, then the slowest nodes."""
    for name, found in profiles.items():
        rows = [
            (row["op"], row["kernel"], row["nodes"], f"{row['milliseconds']:.3f}", f"{row['share']:.1%}")
            for row in found.by_operator()
        ]
        title = f"{name}: {found.milliseconds:.3f} ms in {len(found.nodes)} nodes"
        output.table(title, ("operator", "kernel", "nodes", "ms", "share"), rows)
        slowest = sorted(found.nodes, key=lambda node: -node.milliseconds)[:SLOWEST_NODES]
        shown = [(node.name, node.op, f"{node.milliseconds:.3f}") for node in slowest]
        output.table(f"{name}: the slowest nodes", ("node", "operator", "ms"), shown)
