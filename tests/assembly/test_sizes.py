"""Parts on maps of other sizes than the example's: equal to the trained model, or an error that says what fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.api import resolve_config
from binarize.errors import UsageError
from tests.models import conv_bn, randomized

SIZES = ((16, 16), (24, 32), (17, 16), (20, 11), (9, 9))
"""The first is the example's."""


class Looking(nn.Module):
    """Code that looks at values calls the one part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x)
        return y * 2 if y.mean() > 1e9 else y


class Between(nn.Module):
    """`step` between binary convs."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before = nn.Sequential(*conv_bn(3, 8), *conv_bn(8, 8))
        self.behind = nn.Sequential(*conv_bn(8, 8))
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.step(self.before(x)))


def exported(
    part: nn.Module, folder: Path, *settings: str, size: tuple[int, ...] = SIZES[0], shaken: bool = True
) -> tuple[nn.Module, ...]:
    """The binary model around `part` and the one assembled from the files in `folder`."""
    torch.manual_seed(0)
    model = Looking(part).eval()
    binary = binarize.apply(model, torch.randn(2, 3, *size), config=resolve_config(settings=settings))
    binary = (randomized(binary) if shaken else binary).eval()
    binarize.export(binary, folder)
    return binary, binarize.assemble(folder, model)


def assert_equal_at(binary: nn.Module, assembled: nn.Module, *sizes: tuple[int, ...]) -> None:
    for batch, size in enumerate(sizes, 1):
        x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            torch.testing.assert_close(assembled(x), binary(x), rtol=1e-3, atol=1e-3)


def test_a_strided_max_link(tmp_path: Path) -> None:
    part = nn.Sequential(*conv_bn(3, 8), *conv_bn(8, 8, s=2), *conv_bn(8, 8))
    assert_equal_at(*exported(part, tmp_path / "parts", "link.pool=max"), *SIZES)


def conv3d(
    inputs: int, outputs: int, kernel: tuple[int, int, int] = (3, 3, 3), stride: tuple[int, int, int] = (1, 1, 1)
) -> list[nn.Module]:
    padding = tuple(k // 2 for k in kernel)
    return [nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm3d(outputs), nn.ReLU()]


@pytest.mark.parametrize(
    "layers",
    [
        [conv3d(8, 8, stride=(2, 2, 2))],
        [conv3d(8, 8, (1, 3, 3), (1, 2, 2)), conv3d(8, 8, (3, 1, 1), (2, 1, 1))],
    ],
    ids=["whole", "factorised"],
)
def test_strided_links_in_three_dimensions(layers: list[list[nn.Module]], tmp_path: Path) -> None:
    part = nn.Sequential(*conv3d(3, 8), *(module for layer in layers for module in layer), *conv3d(8, 8))
    models = exported(part, tmp_path / "parts", size=(8, 12, 12))
    assert_equal_at(*models, (8, 12, 12), (4, 16, 8), (7, 9, 11), (3, 8, 5))


@pytest.mark.parametrize("shaken", [False, True])
def test_a_parameter_of_one_number_behind_a_conv_without_a_link(shaken: bool, tmp_path: Path) -> None:
    """A factor of a bare product, before any bias, and one of what has a bias already."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Sequential(*conv_bn(3, 8), *conv_bn(8, 8)[:2])
            self.scale, self.offset = (nn.Parameter(torch.tensor(value)) for value in (1.5, 0.25))
            self.behind = nn.Sequential(*conv_bn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.behind(self.before(x) * self.scale + self.offset)

    assert_equal_at(*exported(Scaled(), tmp_path / "parts", "link.kind=none", shaken=shaken), *SIZES)


@pytest.mark.parametrize(
    "step",
    [
        lambda x: F.adaptive_avg_pool2d(x, 4),
        lambda x: F.adaptive_avg_pool2d(x, (None, 3)),
        lambda x: F.adaptive_max_pool2d(x, (3, 2)),
        lambda x: x * F.avg_pool2d(x, (x.shape[2], x.shape[3])),
        lambda x: x * F.max_pool2d(x, x.size()[2:], stride=1),
    ],
    ids=["windows that divide the example", "rows of any number", "maximum", "mean of the map", "maximum of the map"],
)
def test_pools_to_a_size_and_of_the_whole_map(step: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    assert_equal_at(*exported(Between(step), tmp_path / "parts"), *SIZES)


class SamePadded(nn.Conv2d):
    """TensorFlow's rule: what is missing for `ceil(size / stride)` outputs, the odd one at the end."""

    def forward(self, x: Tensor) -> Tensor:
        pairs: list[int] = []
        for axis in (1, 0):
            size, stride = x.shape[2 + axis], self.stride[axis]
            missing = max((-(-size // stride) - 1) * stride + self.kernel_size[axis] - size, 0)
            pairs += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(x, pairs), self.weight, self.bias, self.stride)


def same_padded(stride: int) -> nn.Module:
    conv = SamePadded(8, 8, 3, stride, bias=False)
    return nn.Sequential(*conv_bn(3, 8), conv, nn.BatchNorm2d(8), nn.ReLU(), *conv_bn(8, 8))


def test_padding_that_follows_the_size_follows_none_without_a_stride(tmp_path: Path) -> None:
    assert_equal_at(*exported(same_padded(stride=1), tmp_path / "parts"), *SIZES)


def maps_of(binary: nn.Module) -> list[str]:
    return [part["maps"] for part in binary.report.results["parts"].values()]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "part",
    [
        lambda: same_padded(stride=2),
        lambda: Between(lambda x: F.avg_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2))),
        lambda: Between(lambda x: F.max_pool2d(x, x.shape[2] // 4, stride=1)),
    ],
    ids=["padding that follows the size", "windows of half a map", "windows of a quarter"],
)
def test_a_part_that_depends_on_the_size_takes_that_of_the_example(
    part: Callable[[], nn.Module], tmp_path: Path
) -> None:
    binary, assembled = exported(part(), tmp_path / "parts")
    assert maps_of(binary) == ["16x16"]
    assert_equal_at(binary, assembled, SIZES[0], SIZES[0])
    for size in SIZES[1:]:
        with pytest.raises(UsageError) as caught:
            assembled(torch.zeros(2, 3, *size))
        assert "any x 3 x 16 x 16, and gets 2 x 3 x " + " x ".join(map(str, size)) in caught.value.message
        assert caught.value.layer == "part" and "example_inputs of that size" in str(caught.value.hint)


class Levels(Looking):
    """The part is called at two sizes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean((2, 3)) + super().forward(x[..., ::2, ::2]).mean((2, 3))


def test_a_part_that_depends_on_the_size_has_a_file_for_each_that_the_example_leads_to(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Levels(same_padded(stride=2)).eval()
    binary = randomized(binarize.apply(model, torch.randn(2, 3, 18, 14))).eval()
    binarize.export(binary, tmp_path / "parts", torch.randn(2, 3, 18, 14))
    assert maps_of(binary) == ["18x14", "9x7"]
    assembled = binarize.assemble(tmp_path / "parts", model)
    assert_equal_at(binary, assembled, (18, 14), (18, 14))
    with pytest.raises(UsageError, match=r"any x 3 x 18 x 14 or any x 3 x 9 x 7, and gets 2 x 3 x 16 x 16"):
        assembled(torch.zeros(2, 3, 16, 16))


def test_sizes_that_the_code_refuses_do_not_count(tmp_path: Path) -> None:
    """Halving and doubling goes with even maps alone, of any size."""
    step = Between(lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2))
    binary, assembled = exported(step, tmp_path / "parts")
    assert maps_of(binary) == ["any"]
    assert_equal_at(binary, assembled, (16, 16), (24, 32), (6, 10))


def test_a_file_that_is_wrong_at_another_size_says_nothing_of_other_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pass or the exporter takes from the example is found by the proof, also where that is not asked for."""
    from binarize.passes import decompose_unfused, layout_rules

    monkeypatch.delitem(layout_rules._RULES, layout_rules.ATEN.adaptive_avg_pool2d.default)
    monkeypatch.setattr(decompose_unfused, "_pools_any_map", lambda node: False)
    torch.manual_seed(0)
    model = Looking(Between(lambda x: F.adaptive_avg_pool2d(x, 4))).eval()
    binary = randomized(binarize.apply(model, torch.randn(2, 3, 16, 16))).eval()
    binarize.export(binary, tmp_path / "parts", check=False)
    assert maps_of(binary) == ["16x16"]
    (part,) = binary.report.results["parts"].values()  # type: ignore[union-attr]
    assert "differ from the trained model" in part["why_fixed"]
    assert_equal_at(binary, binarize.assemble(tmp_path / "parts", model), (16, 16))
