"""`binarize convert` of a model in several graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from binarize import assemble
from tests.cli.conftest import Ran

SOURCE = """
from torch import nn

class Looking(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 2)
        self.body = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8))

    def forward(self, x):
        y = self.body(self.stem(x))
        y = y * 2 if y.mean() > 100 else y
        return self.head(y.mean((2, 3)))

def looking():
    return Looking()
"""


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, str]:
    source = tmp_path / "looking.py"
    source.write_text(SOURCE)
    space: dict = {}
    exec(SOURCE, space)
    torch.save(space["looking"]().state_dict(), tmp_path / "looking.pt")
    return tmp_path / "looking.pt", f"{source}:looking"


def test_parts_are_written_and_shown(cli: Callable[..., Ran], model: tuple[Path, str], tmp_path: Path) -> None:
    file, arch = model
    out = tmp_path / "parts"
    ran = cli("convert", file, "--arch", arch, "--out", out, "--input-size", "3,16,16")
    assert ran.code == 0, ran
    assert "body.onnx" in ran.out and "binarize.assemble" in ran.out
    space: dict = {}
    exec(SOURCE, space)
    assert assemble(out, space["looking"]())(torch.zeros(1, 3, 20, 24)).shape == (1, 2)
    document = cli("convert", file, "--arch", arch, "--out", out, "--input-size", "3,16,16", "--json").document
    assert document["report"]["results"]["parts"]["body.onnx"]["path"] == "body"


def test_one_file_cannot_hold_it_and_the_error_says_what_can(
    cli: Callable[..., Ran], model: tuple[Path, str], tmp_path: Path
) -> None:
    file, arch = model
    ran = cli("convert", file, "--arch", arch, "--out", tmp_path / "x.onnx", "--input-size", "3,16,16", "--json")
    assert ran.code == 3 and "folder" in ran.document["hint"] and "torch.export" in ran.document["message"]
    assert not (tmp_path / "x.onnx").exists()
