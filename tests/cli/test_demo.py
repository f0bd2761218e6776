"""The demo, on a budget of seconds: everything runs and the table is filled in."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from binarize.cli.output import Output

pytest.importorskip("sklearn")


@pytest.mark.slow
def test_the_demo_runs_and_fills_its_table(tmp_path: Path) -> None:
    from examples import demo

    stdout = io.StringIO()
    output = Output("human", "demo", stdout, io.StringIO())
    found = demo.run_demo(tmp_path, output, settings=("training.epochs=4",), float_epochs=4)
    demo.show(output, found)
    text = stdout.getvalue()
    assert found.float_top1 > 0.85 and found.binary_top1 > 0.6
    decisions = found.conversion.report.decisions
    assert {"1x1", "depthwise", "3x3"} <= {d.kind for d in decisions if d.binarized}
    assert f"{found.float_top1:.2%}" in text and f"{found.binary_top1:.2%}" in text
    assert all(d.layer in text for d in found.conversion.report.kept)
    assert "binarize convert" in text
    binary, float_ = found.speed.contenders
    assert binary.size < float_.size / 4
    assert found.conversion.report.results["training"]["val_top1"] == pytest.approx(found.binary_top1, abs=0.01)
