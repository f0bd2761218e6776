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
