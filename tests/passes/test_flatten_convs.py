"""Float 1x1 convs of one pixel are linear layers in the file; all other convs stay what they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import binarize
from binarize import api
from binarize.bench.layers import layers_by_name
from binarize.exporting import emit, verify
from binarize.lowering import Lowered, any_sizes, lower
from binarize.runtime import InferenceSession
from tests.models import SqueezeExcite, conv_bn, randomized

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


class Gated(nn.Module):
    """A stem, a binary conv and a gate on its output, averaged."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.stem, self.conv, self.gate = conv_bn(3, 24), conv_bn(24, 24), gate

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x))
        return (x * self.gate(x.mean((2, 3), keepdim=True))).mean((2, 3))


class Twice(nn.Module):
    """One conv, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(24, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(torch.relu(self.conv(x))))


class Squared(nn.Module):
    """An operator that reads the conv's map twice, and one that reads it beside another."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        y = self.up(x * x + 1)
        return torch.sigmoid(y) * y


def exported(model: nn.Module, any_size: bool = False) -> tuple[Lowered, onnx.ModelProto]:
    module = binarize.apply(model, X, config=api.resolve_config("el", None, ["surgery.keep=gate*"])).eval()
    result = lower(randomized(module).eval(), (X,), shapes=any_sizes((X,)) if any_size else None)
    return result, emit(result, (X,))


def weighted(model: onnx.ModelProto) -> Counter[str]:
    """Float layers by operator; two linear ones may be one `Gate`."""
    ops = Counter(node.op_type for node in model.graph.node)
    return Counter({"Conv": ops["Conv"], "Gemm": ops["Gemm"] + 2 * ops["Gate"], "MatMul": ops["MatMul"]}) + Counter()


GATES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "squeeze-excite": (lambda: nn.Sequential(nn.Conv2d(24, 8, 1), nn.ReLU(), nn.Conv2d(8, 24, 1), nn.Sigmoid()), 2, 0),
    "hard": (
        lambda: nn.Sequential(nn.Conv2d(24, 8, 1), nn.Hardswish(), nn.Conv2d(8, 24, 1), nn.Hardsigmoid()),
        2,
        0,
    ),
    "stride": (lambda: nn.Sequential(nn.Conv2d(24, 24, 1, 2, bias=False), nn.Tanh()), 1, 0),
    "squared": (Squared, 2, 0),
    "norm": (lambda: nn.Sequential(nn.Conv2d(24, 24, 1), nn.BatchNorm2d(24), nn.Sigmoid()), 0, 1),
    "groups": (lambda: nn.Sequential(nn.Conv2d(24, 24, 1, groups=4), nn.Sigmoid()), 0, 1),
    "window": (lambda: nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.Sigmoid()), 0, 1),
    "padding": (lambda: nn.Sequential(nn.Conv2d(24, 24, 1, padding=1), nn.Sigmoid(), nn.AvgPool2d(3)), 0, 1),
    "shared": (Twice, 0, 2),
}
"""A gate, and how many of its convs become linear layers and stay convs."""


@pytest.mark.parametrize(("make", "linear", "conv"), GATES.values(), ids=GATES.keys())
def test_convs_of_one_pixel_are_linear_layers(make: Callable[[], nn.Module], linear: int, conv: int) -> None:
    result, model = exported(Gated(make()))
    assert weighted(model) == Counter(Conv=1 + conv) + Counter(Gemm=linear) + Counter()
    verify(result, model, (X,))
    feeds = {model.graph.input[0].name: X.numpy()}
    one = {name: value[:1] for name, value in feeds.items()}
    session = InferenceSession(model.SerializeToString())
    np.testing.assert_allclose(session.run(None, feeds)[0][:1], session.run(None, one)[0], rtol=1e-5, atol=1e-5)


class Laid(nn.Module):
    """A conv of one pixel, whose map is then laid out anew."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(24, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x).clone(memory_format=torch.channels_last))


def test_what_needs_a_map_behind_the_conv_gets_one() -> None:
    """Regression test: a copy to another memory format counts as elementwise, and rows have none."""
    result, model = exported(Gated(Laid()))
    assert weighted(model) == Counter(Conv=1, Gemm=1)
    verify(result, model, (X,))


def test_a_flattened_conv_keeps_its_weights_name_and_values() -> None:
    """A profile joins layers by it."""
    model = Gated(GATES["hard"][0]())
    wanted = model.gate[0].weight.detach().flatten(1).numpy()
    _, file = exported(model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in file.graph.initializer}
    np.testing.assert_array_equal(weights["gate.0.weight"], wanted)
    assert {"gate.0", "gate.2"} <= set(layers_by_name(file).values())


def test_a_gate_on_maps_of_any_size() -> None:
    """Its own map has one pixel whatever the size."""
    result, model = exported(Gated(SqueezeExcite(24)), any_size=True)
    assert weighted(model) == Counter(Conv=1, Gemm=2)
    verify(result, model, (X,))
    other = torch.randn(1, 3, 11, 14)
    with torch.no_grad():
        wanted = result.original(other).numpy()
    assert InferenceSession(model.SerializeToString()).run(None, {"input": other.numpy()})[0].shape == wanted.shape


def test_a_conv_of_a_whole_map_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.gate = conv_bn(3, 24), conv_bn(24, 24), nn.Conv2d(24, 24, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.gate(self.conv(self.stem(x)))

    assert weighted(exported(Net())[1]) == Counter(Conv=2)
