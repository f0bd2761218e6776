"""RPReLU's last shift goes into what the map's readers add, wherever they only add it, its link or its bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize import api
from binarize.exporting import emit, verify
from binarize.lowering import Lowered, lower
from binarize.passes.lower_tools import PACKED_CONV, Fused, packed_convs
from tests.models import BasicBlock, conv_bn, randomized

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    """A stem, `middle` on 24 channels, and a classifier on `channels`."""

    def __init__(self, middle: nn.Module, channels: int) -> None:
        super().__init__()
        self.stem, self.middle, self.head = conv_bn(3, 24), middle, nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)).mean((2, 3)))


class Convs(nn.Sequential):
    """Plain convs one after the other, from 24 channels to those of `widths`."""

    def __init__(self, *widths: int, **options: int) -> None:
        channels = [24, *widths]
        super().__init__(*(conv_bn(i, o, **options) for i, o in zip(channels, widths, strict=False)))


def lowered(middle: nn.Module, channels: int, *settings: str) -> Lowered:
    config = api.resolve_config("el", None, settings)
    return lower(randomized(binarize.apply(Net(middle, channels), X, config=config)).eval(), (X,), config)


def shifted(result: Lowered) -> list[str]:
    """The convs whose map holds its shift, by path."""
    convs = result.fused.graph.find_nodes(op="call_function", target=PACKED_CONV)
    return [node.meta["path"] for node in convs if Fused(node).value("shift").any()]


def check(result: Lowered) -> None:
    with torch.no_grad():
        torch.testing.assert_close(result.fused(X), result.original(X), rtol=1e-4, atol=1e-4)
    verify(result, emit(result, (X,)), (X,))


@pytest.mark.parametrize("stream", ["float32", "float16"])
@pytest.mark.parametrize(
    ("make", "absorbed"),
    [
        (lambda: Convs(24, 24, 24), 2),
        (lambda: Convs(72, 24, 24, s=2), 2),
        (lambda: nn.Sequential(BasicBlock(24, 24), BasicBlock(24, 48, 2), BasicBlock(48, 48)), 5),
    ],
    ids=["links", "links that copy and sum, with a stride", "residuals, and a map of several readers"],
)
def test_no_map_between_convs_holds_its_shift(make: Callable[[], nn.Module], absorbed: int, stream: str) -> None:
    middle = make()
    channels = [m for m in middle.modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features
    result = lowered(middle, channels, f"export.stream={stream}")
    convs = result.fused.graph.find_nodes(op="call_function", target=PACKED_CONV)
    assert sum("offset" in node.meta for node in convs) == absorbed
    assert not shifted(result), "the last conv's activation meets no sign, so it is the model's own, without a shift"
    if stream == "float32":
        check(result)
    else:
        verify(result, emit(result, (X,)), (X,))


def test_a_map_that_is_packed_for_two_readers_is_compared_with_moved_thresholds() -> None:
    result = lowered(nn.Sequential(BasicBlock(24, 24), BasicBlock(24, 48, 2)), 48)
    makers = [conv for conv in packed_convs(result.fused) if conv.value("next_threshold").dim() == 2]
    assert any("offset" in maker.node.meta for maker in makers), "both readers of a block's input have a plane of it"
    check(result)


def test_a_map_with_another_reader_keeps_its_shift() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv_bn(24, 24), conv_bn(24, 24)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y) * torch.tanh(y).mean()

    result = lowered(Pooled(), 24)
    assert any(name.startswith("middle.a") for name in shifted(result))
    check(result)


def test_a_link_with_windows_off_the_map_keeps_the_shift_in_it() -> None:
    """Padding beyond the kernel's reach: windows in it are empty and give 0, not the shift."""
    middle = nn.Sequential(conv_bn(24, 24), nn.Conv2d(24, 24, 3, padding=3, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    result = lowered(middle, 24)
    assert any(name.startswith("middle.0") for name in shifted(result))
    check(result)
