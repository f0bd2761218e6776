"""Squeeze-excite's and Real-to-Binary's factors are one operator wherever they are what it computes, and stay else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

import binarize
from binarize import api
from binarize.errors import VerificationError
from binarize.exporting import emit, verify
from binarize.lowering import Lowered, any_sizes, lower
from binarize.passes.lower_tools import PACKED_CONV, Fused
from binarize.runtime import InferenceSession
from tests.models import conv_bn, randomized

X = torch.randn(2, 3, 12, 14, generator=torch.Generator().manual_seed(3))


class Gated(nn.Module):
    """A conv whose map is scaled by factors that `gate` makes of it, and a conv that reads the product."""

    def __init__(self, gate: nn.Module, factors_too: bool = False) -> None:
        super().__init__()
        self.stem, self.conv, self.gate, self.next = conv_bn(3, 24), conv_bn(24, 24), gate, conv_bn(24, 16)
        self.head = nn.Linear(16 + 24 * factors_too, 5)
        self.factors_too = factors_too

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x))
        factors = self.gate(x)
        features = [self.next(x * factors).mean((2, 3))] + [factors.flatten(1)] * self.factors_too
        return self.head(torch.cat(features, 1))


class Excite(nn.Module):
    """`factor(fc2(hidden(fc1(mean(x)))))` with layers on vectors."""

    def __init__(
        self,
        hidden: Callable[[Tensor], Tensor] = torch.relu,
        factor: Callable[[Tensor], Tensor] = torch.sigmoid,
        mean: Callable[[Tensor], Tensor] = lambda x: x.mean((2, 3)),
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(24, 8, bias=bias), nn.Linear(8, 24, bias=bias)
        self.hidden, self.factor, self.mean = hidden, factor, mean

    def forward(self, x: Tensor) -> Tensor:
        return self.factor(self.fc2(self.hidden(self.fc1(self.mean(x))))).view(len(x), -1, 1, 1)


class Unsqueezed(Excite):
    """Factors that get their axes one by one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1).unsqueeze(-1)[..., None].expand_as(x)


class Halves(nn.Module):
    """Layers that two halves of the channels share."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 8), nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        halves = x.mean((2, 3)).view(-1, 12)
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(halves)))).view(-1, 24, 1, 1)


class ReadTwice(Excite):
    """What stands between the layers has another reader."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(self.fc1(self.mean(x)))
        return (torch.sigmoid(self.fc2(hidden)) * hidden.mean(1, keepdim=True))[:, :, None, None]


class ComputedWeight(Excite):
    """A layer whose weight is no constant."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        weight = self.fc1.weight * (1 + mean.mean())
        return torch.sigmoid(self.fc2(torch.relu(F.linear(mean, weight))))[:, :, None, None]


class Convs(nn.Sequential):
    """With 1x1 convs, as most nets have it."""

    def __init__(self, hidden: nn.Module, factor: nn.Module, pool: nn.Module | None = None) -> None:
        pool = pool or nn.AdaptiveAvgPool2d(1)
        super().__init__(pool, nn.Conv2d(24, 8, 1), hidden, nn.Conv2d(8, 24, 1), factor)


FUSED: dict[str, Callable[[], nn.Module]] = {
    "relu, sigmoid": Excite,
    "silu, sigmoid": lambda: Excite(F.silu),
    "relu, hard": lambda: Excite(factor=F.hardsigmoid),
    "no biases": lambda: Excite(bias=False),
    "a pool, flattened": lambda: Excite(mean=lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1)),
    "a window as large as the map": lambda: Excite(mean=lambda x: F.avg_pool2d(x, (12, 14)).flatten(1)),
    "axes one by one": Unsqueezed,
    "convs": lambda: Convs(nn.ReLU(), nn.Sigmoid()),
    "convs, silu and hard": lambda: Convs(nn.SiLU(), nn.Hardsigmoid()),
}
LEFT: dict[str, Callable[[], nn.Module]] = {
    "another activation": lambda: Excite(F.gelu),
    "another factor": lambda: Excite(factor=torch.tanh),
    "a hidden layer with two readers": ReadTwice,
    "a computed weight": ComputedWeight,
    "halves of the channels": Halves,
}


def exported(model: nn.Module, *settings: str, sizes: bool = False) -> tuple[Lowered, onnx.ModelProto]:
    """The file, which is proven to be equal."""
    config = api.resolve_config("el", None, list(settings))
    module = randomized(binarize.apply(model, X, config=config)).eval()
    result = lower(module, (X,), config, shapes=any_sizes((X,)) if sizes else None)
    file = emit(result, (X,))
    verify(result, file, (X,))
    return result, file


def operators(file: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in file.graph.node)


@pytest.mark.parametrize("stream", ["float32", "float16"])
@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED.keys())
def test_a_gate_is_one_operator(make: Callable[[], nn.Module], stream: str) -> None:
    ran = operators(exported(Gated(make()), f"export.stream={stream}")[1])
    assert ran["Gate"] == 1
    assert not {"Sigmoid", "HardSigmoid", "Relu", "Mul"} & ran.keys()
    assert ran["Reshape"] == 1, "that of the classifier"
    assert (ran["Gemm"], ran["AveragePool"], ran["ReduceMean"]) == (1, 1, 0), "those of the classifier"


def test_weights_keep_their_names_turned_round() -> None:
    """By them a report tells which float layers are the largest."""
    model = Gated(Excite())
    weights = {t.name: numpy_helper.to_array(t) for t in exported(model)[1].graph.initializer}
    for layer in ("fc1", "fc2"):
        np.testing.assert_array_equal(weights[f"gate.{layer}.weight"], getattr(model.gate, layer).weight.detach().T)


def test_factors_in_another_order_of_axes_stay_as_they_are() -> None:
    """Regression test: `[N * O, 1, 1, 1]` has one pixel, too."""

    class Kernels(nn.Module):
        """Factors as the weights of one conv in groups, over all images."""

        def __init__(self) -> None:
            super().__init__()
            self.excite = Excite()

        def forward(self, x: Tensor) -> Tensor:
            weight = self.excite(x).reshape(len(x) * 24, 1, 1, 1)
            ones = torch.ones(1, len(x) * 24, 1, 1)
            return F.conv2d(ones, weight, groups=len(x) * 24).view(len(x), 24, 1, 1)

    result, file = exported(Gated(Kernels()))
    assert operators(file)["Gate"] == 1
    with torch.no_grad():
        torch.testing.assert_close(result.fused(X), result.original(X), rtol=1e-4, atol=1e-4)


def test_a_wrong_gate_is_not_proved() -> None:
    result, file = exported(Gated(Excite()))
    gate = next(node for node in file.graph.node if node.op_type == "Gate")
    bias = next(tensor for tensor in file.graph.initializer if tensor.name == gate.input[4])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
    with pytest.raises(VerificationError):
        verify(result, file, (X,))


def test_layers_that_two_gates_share_serve_both() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.excite = Excite()

        def forward(self, x: Tensor) -> Tensor:
            return self.excite(x) * self.excite(x.square())

    assert operators(exported(Gated(Shared()))[1])["Gate"] == 2


@pytest.mark.parametrize("make", LEFT.values(), ids=LEFT.keys())
def test_what_the_operator_does_not_compute_stays(make: Callable[[], nn.Module]) -> None:
    assert operators(exported(Gated(make()))[1])["Gate"] == 0


def test_a_window_smaller_than_the_map_stays() -> None:
    """Its outputs are more than one per channel, of which the gate here takes the first."""
    gate = Excite(mean=lambda x: F.avg_pool2d(x, (6, 7))[:, :, 0, 0])
    assert operators(exported(Gated(gate))[1])["Gate"] == 0


def test_factors_that_the_model_also_gives_are_vectors_too() -> None:
    result, file = exported(Gated(Excite(), factors_too=True))
    assert operators(file)["Gate"] == 1
    with torch.no_grad():
        wanted = result.original(X).numpy()
    got = InferenceSession(file.SerializeToString()).run(None, {"input": X.numpy()})[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_gate_of_maps_of_any_size() -> None:
    result, file = exported(Gated(Excite()), sizes=True)
    assert operators(file)["Gate"] == 1
    other = torch.randn(2, 3, 9, 11)
    with torch.no_grad():
        wanted = result.original(other).numpy()
    got = InferenceSession(file.SerializeToString()).run(None, {"input": other.numpy()})[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_shift_that_a_gate_reads_is_absorbed() -> None:
    """Regression test: every map that a pool averaged kept its shift, an addition for each of its values."""
    config = api.resolve_config("el-dagger", None, [])
    model = nn.Sequential(conv_bn(3, 24), conv_bn(24, 24), conv_bn(24, 24), conv_bn(24, 24))
    result = lower(randomized(binarize.apply(model, X, config=config)).eval(), (X,), config)
    verify(result, emit(result, (X,)), (X,))
    convs = [Fused(node) for node in result.fused.graph.find_nodes(op="call_function", target=PACKED_CONV)]
    assert [bool(conv.value("shift").any()) for conv in convs] == [False] * len(convs)
    assert sum("offset" in conv.node.meta for conv in convs) == len(convs) - 1
