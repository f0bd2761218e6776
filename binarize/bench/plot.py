"""Measurements as bars, in an SVG or PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.errors import EnvironmentProblem, UsageError
from binarize.files import atomic_output, check_writable

if TYPE_CHECKING:
    from binarize.bench.compare import Benchmark
    from binarize.bench.layers import LayerTime

FORMATS = (".svg", ".png", ".pdf")


def check_plot(path: str | Path) -> None:
    """Raise now what would fail after the measurement.

    Raises:
        UsageError: a format that is not among `FORMATS`, or `path` cannot be written to.
        EnvironmentProblem: matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise UsageError("the name says no known format", layer=str(path), hint=f"one of {', '.join(FORMATS)}")
    check_writable(path)
    _pyplot()


def plot_benchmark(path: str | Path, result: Benchmark, layers: Sequence[LayerTime] = ()) -> None:
    """Median times with the range from minimum to p90, and below them the layers if there are any."""
    pyplot = _pyplot()
    height = 1.2 + 0.4 * len(result.contenders)
    below = 0.8 + 0.11 * len(layers) * len(result.contenders) if layers else 0.0
    figure, axes = pyplot.subplots(
        2 if layers else 1,
        figsize=(8, height + below),
        height_ratios=[height, below] if layers else [1],
        layout="constrained",
        squeeze=False,
    )
    _contenders(axes[0][0], result)
    if layers:
        names = [contender.name for contender in result.contenders]
        values = {layer.layer: [layer.milliseconds.get(name) for name in names] for layer in layers}
        grouped_bars(axes[1][0], values, names, "ms per layer, ONNX Runtime's profiler")
    save_figure(figure, path)


def grouped_bars(
    axes: Any, groups: Mapping[str, Sequence[float | None]], names: Sequence[str], label: str, log: bool = False
) -> None:
    """A group of horizontal bars for every entry of `groups`, a bar in it for every name; None leaves a gap."""
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        positions = [row + (index - (len(names) - 1) / 2) * width for row in range(len(groups))]
        axes.barh(positions, [values[index] or 0.0 for values in groups.values()], width, label=_literal(name))
    axes.set_yticks(range(len(groups)), [_literal(group) for group in groups], fontsize=7)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel(label)
    if log:
        axes.set_xscale("log")
    axes.legend(fontsize=8)


def save_figure(figure: Any, path: str | Path, description: str | None = None) -> None:
    """Write `figure` to `path` atomically, the same bytes for the same data, and close it.

    Args:
        description: goes into an SVG's metadata.
    """
    pyplot = _pyplot()
    kind = Path(path).suffix.lower().removeprefix(".")
    with atomic_output(path) as temporary, pyplot.rc_context({"svg.hashsalt": "binarize"}):
        notes = {"Date": None, "Description": description} if kind == "svg" else None
        figure.savefig(temporary, format=kind, metadata=notes)
    pyplot.close(figure)


def _contenders(axes: Any, result: Benchmark) -> None:
    times = [contender.latency for contender in result.contenders]
    medians = [time.median for time in times]
    spread = [[t.median - t.minimum for t in times], [t.p90 - t.median for t in times]]
    bars = axes.barh(range(len(times)), medians, 0.6, xerr=spread, color=[f"C{i}" for i in range(len(times))])
    axes.bar_label(bars, [f" {median:.2f} ms" for median in medians], padding=6, fontsize=8)
    axes.set_yticks(range(len(times)), [_literal(contender.name) for contender in result.contenders])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    threads = f"{result.threads} thread{'s' * (result.threads > 1)}"
    axes.set_xlabel(f"ms per run, batch {result.batch}, {threads} (median; line: minimum to p90)")
    axes.set_title(f"{result.machine.get('cpu', '')}, kernels {result.machine.get('isa', '')}", fontsize=9)


def _literal(name: str) -> str:
    """`name` as a label that shows it: no formula between dollars, and not left out for an underscore in front."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "a plot needs the package 'matplotlib'", hint='pip install "binarize-nn[bench]"'
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
