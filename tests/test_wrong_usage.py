"""What a Python user gives by mistake is a UsageError that says what was given, and what to give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import binarize
from binarize.errors import UsageError
from binarize.training.data import TensorImages
from tests.models import conv_bn

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        conv_bn(3, 16), conv_bn(16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    ).eval()


def binary(*settings: str) -> Any:
    return binarize.apply(net(), X, config=binarize.Config().with_settings(settings))


MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "recipe": (lambda _: binarize.apply(net(), X, recipe=binarize.Config()), "recipe is a Config"),
    "config": (lambda _: binarize.apply(net(), X, config={"conv": {"gate": True}}), "configuration is a dict"),
    "settings": (lambda _: binarize.Config().with_settings("training.epochs=1"), "settings is one text"),
    "array": (lambda _: binarize.apply(net(), [X.numpy()]), "array of numpy"),
    "no image": (lambda _: binarize.apply(net(), X[:0]), "empty batch"),
    "size": (lambda out: binarize.convert(net(), out, input_size=32), "input size 32"),
    "path": (lambda _: binarize.load(None), "path is a NoneType"),
    "arch": (lambda out: binarize.load(out, net), "arch is a function"),
    "no data": (lambda _: binarize.finetune(binary(), net(), None), "no data"),
    "finetune": (lambda _: binarize.finetune(binary(), net(), X, config={}), "configuration is a dict"),
    "channels": (lambda out: binarize.export(binary(), out, X[:, :1]), "does not run on example_inputs"),
    "ranges": (lambda out: binarize.export(binary("export.stem=int8"), out, images=X.numpy()), "is a ndarray"),
    "pixels": (lambda out: binarize.export(binary("export.stem=int8"), out, images=X.byte()), "uint8"),
    "shape": (lambda out: binarize.export(binary("export.stem=int8"), out, images=X[..., :8]), "the file takes"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_what_to_give(mistake: str, tmp_path: Path) -> None:
    make, words = MISTAKES[mistake]
    with pytest.raises(UsageError, match=words) as caught:
        make(tmp_path / "net.onnx")
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "images, words",
    [
        ([], "nothing to calibrate with"),
        (X.numpy(), "is a ndarray"),
        ([[X, torch.zeros(4)]], "is a list"),
        ([(X, torch.zeros(4))], "does not run"),
        (X[0], "does not run"),
        (X[:, :1], "does not run"),
    ],
    ids=["none", "array", "loader", "labels", "one image", "channels"],
)
def test_what_cannot_calibrate_leaves_the_module_as_it_was(images: Any, words: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 3)).eval()
    module = binarize.apply(model, X)  # gets batch norms, which begin with what the float convs give
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UsageError, match=words) as caught:
        binarize.calibrate(module, model, images)
    assert caught.value.hint
    assert not any(layer._forward_hooks for layer in model.modules())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.body = conv_bn(3, 16), conv_bn(1, 16), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(self.left(left) + self.right(right))).mean((2, 3)))


def test_a_model_of_two_inputs_is_calibrated_with_tuples() -> None:
    model, pair = Pair().eval(), (X, X[:, :1])
    module = binarize.apply(model, pair)
    assert float(module.body.threshold.abs().max()) == 0
    assert binarize.calibrate(module, model, [pair, pair]) is module
    assert float(module.body.threshold.abs().max()) > 0
    assert int(module.left[1].num_batches_tracked) == 2


def test_sizes_may_be_lists(tmp_path: Path) -> None:
    conversion = binarize.convert(net(), tmp_path / "net.onnx", input_size=[3, 8, 8])  # type: ignore[arg-type]
    shape = binarize.InferenceSession(conversion.path).get_inputs()[0].shape
    assert shape[1:] == [3, 8, 8]
    assert "BinaryConv" not in repr(conversion), "a notebook shows where things are, not the whole net"


def test_jit_trace_takes_a_binary_module() -> None:
    """What counts operations, and writes graphs for TensorBoard, traces so."""
    module = binarize.apply(nn.Sequential(conv_bn(3, 16), conv_bn(16, 32, s=2), conv_bn(32, 32)).eval(), X).eval()
    with torch.no_grad():
        assert np.array_equal(torch.jit.trace(module, X)(X).numpy(), module(X).numpy())


def test_small_images_are_not_enlarged_to_a_guessed_size(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (16, 3, 12, 12), dtype=torch.uint8)
    data = TensorImages(pixels, torch.arange(16) % 4, list("abcd"))
    config = binarize.Config().with_settings(["training.batch_size=8", "training.epochs=0.5"])
    guessed = binarize.apply(net(), config=config)
    with pytest.raises(UsageError, match="12 x 12, and apply, without example inputs, took the model's for 224 x 224"):
        binarize.finetune(guessed, net(), data)
    binarize.finetune(guessed, net(), data, input_size=(3, 12, 12))
    binarize.export(guessed, tmp_path / "net.onnx")
    shape = binarize.InferenceSession(tmp_path / "net.onnx").get_inputs()[0].shape
    assert shape[1:] == [3, 12, 12], "a file is for the images that were learned from"
    binarize.finetune(binarize.apply(net(), X, config=config), net(), data)
