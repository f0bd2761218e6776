"""What `--arch` accepts, and what it answers to names that are not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from binarize.errors import EnvironmentProblem, UsageError
from binarize.loading import resolve


def test_torchvision_model_is_built_without_download() -> None:
    module = resolve("torchvision:squeezenet1_1").build(num_classes=3)
    assert module(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_factory_in_a_file(tiny_file: Path) -> None:
    before = list(sys.path)
    assert type(resolve(f"{tiny_file}:tiny").build()).__name__ == "TinyNet"
    assert sys.path == before


def test_factory_in_a_module_of_the_current_directory(tiny_file: Path, monkeypatch) -> None:
    monkeypatch.chdir(tiny_file.parent)
    tiny_file.rename(tiny_file.parent / "only_here.py")
    assert isinstance(resolve("only_here:TinyNet").build(), nn.Module)
    assert isinstance(resolve("./only_here.py:tiny").build(num_classes=9), nn.Module)


def test_timm_model(monkeypatch) -> None:
    pytest.importorskip("timm")
    assert resolve("timm:resnet10t").build(num_classes=2)(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    with pytest.raises(UsageError, match="timm has no model") as raised:
        resolve("timm:resnet10tt")
    assert "timm:resnet10t" in str(raised.value.hint)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EnvironmentProblem, match="timm is not installed"):
        resolve("timm:resnet10t")


@pytest.mark.parametrize(
    "spec, words, hint",
    [
        ("resnet18", "does not name an architecture", "torchvision:resnet18"),
        ("nothing like it", "does not name an architecture", "package.module:factory"),
        ("torchvision:", "does not name an architecture", "torchvision:resnet18"),
        ("torchvision:resnet81", "torchvision has no model 'resnet81'", "torchvision:resnet18"),
        ("no_such_package.models:net", "no module 'no_such_package'", "file.py:factory"),
        ("json.no_such_part:net", "no module 'json.no_such_part'", "file.py:factory"),
        ("json:lod", "has no 'lod'", "json:load"),
        ("no/such/file.py:net", "no file 'no/such/file.py'", "check the path"),
    ],
)
def test_names_that_are_not_there(spec: str, words: str, hint: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        resolve(spec)
    assert hint in str(raised.value.hint)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    "factory, words",
    [
        ("broken", "raised ValueError while being built: no weights today"),
        ("wrong_type", "built a int, not an nn.Module"),
        ("number", "'number' is a int object, not a function or class"),
        ("tony", "has no 'tony'"),
    ],
)
def test_factories_that_fail(tiny_file: Path, factory: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve(f"{tiny_file}:{factory}").build()


@pytest.mark.parametrize("source", ["raise RuntimeError('boom')", "def (:", "import sys; sys.exit(3)"])
def test_files_that_do_not_import(tmp_path: Path, source: str) -> None:
    path = tmp_path / "bad_source.py"
    path.write_text(source)
    with pytest.raises(UsageError, match=r"Importing .* raised (RuntimeError|SyntaxError|SystemExit)"):
        resolve(f"{path}:net")


def test_a_factory_may_import_its_neighbours_when_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "late_neighbour.py").write_text("from torch import nn\n")
    (tmp_path / "late.py").write_text("def net():\n    from late_neighbour import nn\n    return nn.Linear(2, 2)\n")
    assert resolve(f"{tmp_path}/late.py:net").build().in_features == 2
