"""Models whose code does what pretrained nets of libraries seldom do, from `apply` to the file."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.errors import UnsupportedModelError, UsageError
from tests.models import conv_bn


def exported(
    model: nn.Module, path: Path, *inputs: Tensor, config: binarize.Config | None = None
) -> tuple[np.ndarray, np.ndarray, nn.Module]:
    """What file and module give, and the module."""
    module = binarize.apply(model.eval(), inputs, config=config).eval()
    binarize.export(module, path)
    session = binarize.InferenceSession(path)
    feeds = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        return session.run(None, feeds)[0], module(*inputs).numpy(), module


class Averaged(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 16, s=stride), conv_bn(16, 16, s=stride))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("size", [4, 8, 12])
def test_a_mean_over_a_map_of_one_pixel_drops_its_axes_too(size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found, wanted, _ = exported(Averaged(2), tmp_path / "m.onnx", torch.randn(2, 3, size, size))
    assert found.shape == wanted.shape == (2, 5)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


class ReadsItsConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = conv_bn(3, 16), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).to(self.conv.weight.device).type_as(self.conv.weight)
        return self.head(self.conv(x).mean((2, 3)) / self.conv.out_channels)


def test_code_may_read_a_binary_conv(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found, wanted, module = exported(ReadsItsConv(), tmp_path / "m.onnx", torch.randn(2, 3, 12, 12))
    assert [d.layer for d in module.report.binarized] == ["conv"]  # type: ignore[union-attr]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_conv_with_a_patched_forward_stays_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        conv_bn(3, 16), nn.Conv2d(16, 16, 3, padding=1), conv_bn(16, 16), nn.Conv2d(16, 5, 12), nn.Flatten()
    )
    model[1].forward = types.MethodType(
        lambda self, x: F.conv2d(x, self.weight, self.bias, padding=1) * 3 + 1, model[1]
    )
    found, wanted, module = exported(model, tmp_path / "m.onnx", torch.randn(2, 3, 12, 12))
    assert {d.layer: d.rule for d in module.report.kept}["1"] == "subclass"  # type: ignore[union-attr]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


class Conditional(nn.Module):
    """Maps by class number, and a mask of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.classes, self.head = (
            conv_bn(3, 16),
            conv_bn(16, 16),
            nn.Embedding(3, 16),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor, number: Tensor, mask: Tensor) -> Tensor:
        x = self.stem(x) + self.classes(number)[:, :, None, None]
        return self.head((self.body(x) * mask).mean((2, 3)))


def test_integers_and_booleans_keep_their_type(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 12, 12), torch.tensor([1, 2]), torch.rand(2, 1, 12, 12) > 0.5
    found, wanted, _ = exported(Conditional(), tmp_path / "m.onnx", *inputs)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    types_ = [entry.type for entry in binarize.InferenceSession(tmp_path / "m.onnx").get_inputs()]
    assert types_ == ["tensor(float)", "tensor(int64)", "tensor(bool)"]


class Returning(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.net, self.form = Averaged(1), form

    def forward(self, x: Tensor) -> object:
        y = self.net(x)
        if self.form == "size":
            return y, x.shape[-2:]
        return {"logits": y, "loss": 0.0, "batch": x.shape[0], "none": None, "twice": y * 2}


@pytest.mark.parametrize(("form", "outputs"), [("size", 1), ("dictionary", 2)])
def test_outputs_that_are_no_tensors_are_left_out(form: str, outputs: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    module = binarize.apply(Returning(form).eval(), x).eval()
    binarize.export(module, tmp_path / "m.onnx", x)
    found = binarize.InferenceSession(tmp_path / "m.onnx").run(None, {"input": x.numpy()})
    with torch.no_grad():
        wanted = [y for y in torch.utils._pytree.tree_leaves(module(x)) if isinstance(y, Tensor)]
    assert len(found) == len(wanted) == outputs
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-4)


def test_wrappers_are_taken_off_and_what_is_no_model_is_refused() -> None:
    model, x = Averaged(1), torch.randn(2, 3, 8, 8)
    for wrapped in (nn.DataParallel(model), torch.compile(model), nn.DataParallel(torch.compile(model))):
        module = binarize.apply(wrapped, x)
        assert type(module).__name__ == "Averaged" and module.report.binarized  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="OrderedDict is no model"):
        binarize.apply(model.state_dict())  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="TorchScript"):
        binarize.apply(torch.jit.trace(model, x))


def test_a_report_without_binary_convs_says_so() -> None:
    module = binarize.apply(
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(2, 3, 8, 8)
    )
    assert "NOTHING IS BINARY" in module.report.summary()  # type: ignore[union-attr]


class BetweenConvs(nn.Module):
    """Does something of its own between two convs."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.conv, self.head = conv_bn(3, 16), conv_bn(16, 16), nn.Linear(16, 5)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.between(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize("size", [(12, 12), (13, 11)])
@pytest.mark.parametrize("ceiling", [False, True])
@pytest.mark.parametrize("kernel, padding", [(2, 0), (2, 1), (3, 1), ((3, 2), (1, 0))])
def test_a_pool_with_a_divisor_of_its_own(
    kernel: int | tuple[int, int], padding: int, ceiling: bool, size: tuple[int, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = BetweenConvs(lambda x: F.avg_pool2d(x, kernel, 2, padding, ceil_mode=ceiling, divisor_override=3))
    found, wanted, _ = exported(model, tmp_path / "m.onnx", torch.randn(2, 3, *size))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factor", [3.0, 3.2, (3.0, 3.2), (3.2, 3.4)])
def test_upsampling_by_a_fraction(factor: float | tuple[float, float], tmp_path: Path) -> None:
    """Three pixels become nine by 3.0 as by 3.2, of other places."""
    torch.manual_seed(0)
    model = BetweenConvs(lambda x: F.interpolate(F.max_pool2d(x, 4), scale_factor=factor))
    found, wanted, _ = exported(model, tmp_path / "m.onnx", torch.randn(2, 3, 12, 12))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


class Masked(nn.Module):
    def __init__(self, mask: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.net, self.mask = Averaged(1), mask

    def forward(self, x: Tensor) -> object:
        return self.mask(self.net(x))


@pytest.mark.parametrize("stream", ["float32", "float16"])
@pytest.mark.parametrize(
    "mask",
    [
        lambda y: (y, y > 0),
        lambda y: y > 0.1,
        lambda y: y.argmax(1),
        lambda y: torch.cat([y, torch.full_like(y, -torch.inf)], 1),
        lambda y: y.masked_fill(y < 0, torch.inf),
        lambda y: (y, y[:, :0]),
    ],
    ids=["values and mask", "mask", "classes", "nothing but impossible classes", "some infinite", "empty"],
)
def test_outputs_may_be_masks_classes_and_infinite(
    mask: Callable[[Tensor], object], stream: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    config = binarize.Config().with_settings([f"export.stream={stream}"])
    module = binarize.apply(Masked(mask).eval(), x, config=config).eval()
    report = binarize.export(module, tmp_path / "m.onnx", x)
    assert report.results["verification"]["output_difference"] < 1e-3
    found = binarize.InferenceSession(tmp_path / "m.onnx").run(None, {"input": x.numpy()})
    with torch.no_grad():
        wanted = [y.numpy() for y in torch.utils._pytree.tree_leaves(module(x))]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=2e-2)


class Functional(nn.Module):
    """Calls a layer's function with numbers that it computes each time."""

    def __init__(self, between: Callable[..., Tensor]) -> None:
        super().__init__()
        self.stem, self.conv, self.head = conv_bn(3, 16), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)
        self.weight, self.between = nn.Parameter(torch.randn(16)), between

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.between(self.conv(x) + x, self.weight)
        return self.head(self.conv(self.between(self.conv(x), self.weight)).mean((2, 3)))


@pytest.mark.parametrize("stream", ["float32", "float16"])
@pytest.mark.parametrize(
    "between",
    [
        lambda x, w: F.prelu(x, w.abs()),
        lambda x, w: F.batch_norm(x, w, w.exp(), w + 1, w),
        lambda x, w: F.batch_norm(x, x.mean((0, 2, 3)), x.var((0, 2, 3)), None, w),
        lambda x, w: x + F.relu((3 * x).long()),
    ],
    ids=["slopes", "norm", "norm of the batch", "activated integers"],
)
def test_numbers_of_a_layer_may_be_computed(between: Callable[..., Tensor], stream: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = binarize.Config().with_settings([f"export.stream={stream}"])
    found, wanted, _ = exported(Functional(between), tmp_path / "m.onnx", torch.randn(2, 3, 12, 12), config=config)
    tolerance = 1e-3 if stream == "float32" else 2e-2
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "steep",
    [
        lambda x: x + torch.exp(3 * x),
        lambda x: x + torch.sin(40 * x),
        lambda x: x + 1 / (x * x + 0.01),
        lambda x: F.softmax(30 * x.flatten(2), 2).view_as(x) * 100,
        lambda x: F.batch_norm(x, x.mean((0, 2, 3)) * 20, x.var((0, 2, 3)) / 400) / 20,
    ],
    ids=["exponential", "sine", "quotient", "softmax of pixels", "norm"],
)
def test_a_float16_streams_roundings_may_be_carried_far(steep: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    class Steep(BetweenConvs):
        def __init__(self) -> None:
            super().__init__(steep)
            self.first = conv_bn(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(self.between(self.first(self.stem(x))))
            return torch.exp(3 * self.head(x.mean((2, 3))))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    config = binarize.Config().with_settings(["export.stream=float16"])
    module = binarize.apply(Steep().eval(), x, config=config).eval()
    proof = binarize.export(module, tmp_path / "m.onnx", x).results["verification"]
    assert 0 < proof["worst"] <= 1 and proof["nodes"] >= 4


def test_a_model_of_random_answers_is_refused_for_that(tmp_path: Path) -> None:
    model = BetweenConvs(lambda x: F.dropout(x, 0.5, training=True))
    with pytest.raises(UnsupportedModelError, match="two runs of the model on equal inputs") as refused:
        exported(model, tmp_path / "m.onnx", torch.randn(2, 3, 12, 12))
    assert "dropout" in str(refused.value.hint)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    "between",
    [
        lambda conv, x: conv(x.mean(2, keepdim=True)) + x,  # strip pooling: a smaller map meets a larger one
        lambda conv, x: conv(x.mean(2, keepdim=True)) * x.abs().mean(1, keepdim=True),
        lambda conv, x: conv(x.mean(3, keepdim=True)) * torch.linspace(0.5, 1.5, 12),
        lambda conv, x: conv(x) + (x > 0.3),
        lambda conv, x: conv(x) * (x > 0.3).any(1, keepdim=True),
    ],
    ids=["sum of a strip", "strip by a map of pixels", "strip by a constant", "sum with a mask", "masked pixels"],
)
def test_what_meets_a_binary_conv_may_be_larger_or_no_float(between: Callable[..., Tensor], tmp_path: Path) -> None:
    class Meeting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv_bn(3, 16), nn.Linear(16, 5)
            self.conv = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(between(self.conv, self.stem(x))).mean((2, 3)))

    torch.manual_seed(0)
    found, wanted, _ = exported(Meeting(), tmp_path / "m.onnx", torch.randn(2, 3, 12, 12))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_leaky_activation_of_the_usual_slope_before_a_max_pool(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.LeakyReLU())
    model = nn.Sequential(*model, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    config = binarize.Config().with_settings(["surgery.activation=keep"])
    found, wanted, _ = exported(model, tmp_path / "m.onnx", torch.randn(2, 3, 12, 12), config=config)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_what_no_export_can_hold_is_refused_in_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """PyTorch's exporter prints the graph it has until then."""

    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = conv_bn(3, 8), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return self.head(-y if float(y.sum()) > 1e9 else y)

    module = binarize.apply(Moody().eval(), torch.randn(2, 3, 16, 16))
    line = r"Moody: .* at .*test_odd_models\.py:\d+ \(return self\.head\("
    assert re.search(f"a folder of parts holds it: {line}", module.report.summary())  # type: ignore[union-attr]
    with pytest.raises(UnsupportedModelError, match=rf"torch\.export cannot represent the model.*{line}"):
        binarize.export(module, tmp_path / "moody.onnx")
    said = capfd.readouterr()
    assert not said.out and not said.err
    assert not list(tmp_path.iterdir())


class Structured(nn.Module):
    """Takes a dictionary, a list and settings beside its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv_bn(3, 16), conv_bn(16, 16), nn.Conv2d(16, 4, 1)

    def forward(
        self, x: dict[str, Tensor], bias: list[Tensor], mask: Tensor | None, scale: float, twice: bool = False
    ) -> Tensor:
        y = self.stem(x["image"])
        y = y + bias[0] * bias[1]
        if mask is not None:
            y = y * mask
        y = self.head(self.body(y)) * x["weight"].view(-1, 1, 1, 1) * scale
        return y * 2 if twice else y


def structured(batch: int, mask: bool) -> tuple[Any, ...]:
    image, weight = torch.randn(batch, 3, 8, 8), torch.rand(batch)
    bias = [torch.randn(batch, 1, 8, 8), torch.tensor(0.5)]
    return {"image": image, "weight": weight}, bias, torch.rand(batch, 1, 8, 8) if mask else None, 3.0, True


@pytest.mark.parametrize("mask", [False, True])
def test_inputs_that_are_no_tuple_of_tensors_become_one(mask: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = binarize.apply(Structured().eval(), structured(2, mask)).eval()
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(len(args)))
    binarize.export(module, tmp_path / "m.onnx")  # with random inputs of the form that it knows
    assert set(seen) == {5}, "hooks see what the model takes"
    session = binarize.InferenceSession(tmp_path / "m.onnx")
    inputs = structured(3, mask)
    tensors = [x for x in torch.utils._pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    names = [item.name for item in session.get_inputs()]
    assert names == [f"input_{i}" for i in range(len(tensors))]
    found = session.run(None, {name: x.numpy() for name, x in zip(names, tensors, strict=True)})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, module(*inputs).numpy(), rtol=1e-3, atol=1e-4)
