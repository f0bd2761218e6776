"""Plots: real files, the same bytes each time, and a clear word where matplotlib is missing."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from binarize.bench import Benchmark, Contender, Latency
from binarize.bench.layers import LayerTime
from binarize.bench.plot import check_plot, plot_benchmark
from binarize.errors import EnvironmentProblem, UsageError


def result() -> Benchmark:
    contenders = tuple(
        Contender(name, Path(name), 1, Latency(time, time * 0.9, time * 1.2, 20, 1.0, 1.0, 1.0))
        for name, time in (("binary", 1.0), ("float", 5.0))
    )
    return Benchmark(contenders, {"cpu": "a CPU", "isa": "scalar"}, 1, (), 1, 20)


LAYERS = [
    LayerTime("conv1", "Conv", {"binary": (1.0,), "float": (2.0,)}),
    LayerTime("new", "BinaryConv2d", {"binary": (1.0,)}),
]


@pytest.mark.parametrize("layers", [[], LAYERS], ids=["contenders", "and layers"])
def test_a_plot_is_written_and_reproducible(tmp_path: Path, layers: list[LayerTime]) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg", "a.png"):
        plot_benchmark(tmp_path / name, result(), layers)
    text = (tmp_path / "a.svg").read_text()
    assert text.lstrip().startswith("<?xml") and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert text == (tmp_path / "b.svg").read_text()
    assert "5.00 ms" in text.replace("<!-- ", "") and ("conv1" in text) == bool(layers)


@pytest.mark.parametrize("name", [r"a$\frac$b", "$$", "_x", "a_b^{c"])
def test_names_are_no_formulas(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    made = result()
    made = replace(made, contenders=tuple(replace(c, name=f"{name}{i}") for i, c in enumerate(made.contenders)))
    layers = [LayerTime(name, "Conv", {f"{name}0": (1.0,), f"{name}1": (2.0,)})]
    plot_benchmark(tmp_path / "a.svg", made, layers)
    text = (tmp_path / "a.svg").read_text().replace("\\$", "$")
    assert text.count(f"{name}0 -->") == 2 and text.count(f"{name}1 -->") == 2  # at its bar and in the legend


def test_what_cannot_be_plotted_is_said_before_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no known format"):
        check_plot("plot.txt")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EnvironmentProblem, match="matplotlib") as caught:
        check_plot("plot.svg")
    assert 'pip install "binarize-nn[bench]"' in str(caught.value)
