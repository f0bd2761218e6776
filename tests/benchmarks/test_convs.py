"""Time by kind of conv: every binary conv is in one kind, with the multiply-accumulates that surgery counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import binarize
from benchmarks.convs import KINDS, times_by_kind
from binarize.bench.profile import profile
from tests.models import EveryConv


def test_kinds_have_all_the_multiply_accumulates_of_the_binary_convs(tmp_path: Path) -> None:
    model = binarize.apply(EveryConv().eval(), torch.randn(2, 3, 32, 32)).eval()
    file = tmp_path / "every.onnx"
    binarize.export(model, file, check=False)
    timed = profile({"every": file}, runs=2)["every"]
    found = times_by_kind(timed, file)
    assert list(found) == [kind for kind in KINDS if kind in found]
    assert {"larger kernels", "depthwise", "1x1, more channels", "1x1, fewer channels"} <= set(found)
    decisions = model.report.binarized
    assert sum(sums["macs"] for sums in found.values()) == sum(decision.macs for decision in decisions)
    assert sum(sums["nodes"] for sums in found.values()) == len(decisions)
    binary = [node.milliseconds for node in timed.nodes if node.op == "BinaryConv2d"]
    assert sum(sums["milliseconds"] for sums in found.values()) == pytest.approx(sum(binary))
