"""A tiny trained network with its data, and a way to run the command line in this process."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from binarize.cli.app import main

TINY_SOURCE = '''
from torch import nn


class Tiny(nn.Module):
    """Images [N, 1, 8, 8] to logits [N, num_classes]."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def tiny(num_classes=3):
    return Tiny(num_classes)
'''
SETTINGS = ("training.batch_size=16", "training.augment=none", "training.mean=0.5", "training.std=0.5")


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Its standard output, which must be one JSON document and nothing else."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True)
class Workshop:
    """Files to work with.

    Attributes:
        folder: where everything lies.
        arch: what builds the network.
        model: its float weights, a checkpoint with `state_dict`.
        data: a folder with train.parquet (96 images) and test.parquet (30), three classes.
    """

    folder: Path
    arch: str
    model: Path
    data: Path

    def options(self, *, epochs: float = 2) -> list[str]:
        """Options that make fine-tuning quick and the same every time."""
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        return ["--arch", self.arch, "--data", str(self.data), "--epochs", str(epochs), *settings]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run `binarize ARGUMENTS` in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    source = folder / "tiny_net.py"
    source.write_text(TINY_SOURCE)
    space: dict[str, Any] = {}
    exec(TINY_SOURCE, space)
    torch.manual_seed(1)
    torch.save({"state_dict": space["tiny"]().state_dict()}, folder / "tiny.pt")
    data = folder / "data"
    data.mkdir()
    write_images(data / "train.parquet", 96, seed=1)
    write_images(data / "test.parquet", 30, seed=2)
    return Workshop(folder, f"{source}:tiny", folder / "tiny.pt", data)


@pytest.fixture(scope="session")
def converted(workshop: Workshop) -> Path:
    """The network as a fine-tuned binary ONNX file, made by `binarize convert`."""
    out = workshop.folder / "tiny.onnx"
    code = main(["convert", str(workshop.model), "--out", str(out), "--quiet", *workshop.options()])
    assert code == 0
    return out


@pytest.fixture(scope="session")
def finetuned(workshop: Workshop) -> Path:
    """The network as a fine-tuned binary module, made by `binarize finetune`."""
    out = workshop.folder / "tiny_binary.pt"
    code = main(["finetune", str(workshop.model), "--out", str(out), "--quiet", *workshop.options()])
    assert code == 0
    return out


def write_images(path: Path, count: int, *, seed: int, classes: int = 3) -> None:
    """Noise with a bright stripe whose position is the class."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        picture = torch.randint(0, 90, (8, 8), generator=generator, dtype=torch.uint8)
        picture[:, 2 * (index % classes) : 2 * (index % classes) + 2] += 120
        buffer = io.BytesIO()
        Image.fromarray(picture.numpy()).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue()})
    pq.write_table(pa.table({"image": rows, "label": [i % classes for i in range(count)]}), path)
