"""Model files of every kind, written by the tests themselves."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loading_helpers import TINY_SOURCE, TinyNet


@pytest.fixture
def tiny() -> TinyNet:
    torch.manual_seed(3)
    return TinyNet()


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    """A Python file with the factory `tiny` and some that fail."""
    path = tmp_path / "tiny_models.py"
    path.write_text(TINY_SOURCE)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save any object with torch.save and give its path."""

    def save(content: object, name: str = "model.pt", **options: Any) -> Path:
        path = tmp_path / name
        torch.save(content, path, **options)
        return path

    return save


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    """A torch.save archive whose one storage unpacks from kilobytes to 200 MB."""
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        with archive.open("archive/data/0", "w") as stream:
            for _ in range(200):
                stream.write(bytes(1 << 20))
    return path
