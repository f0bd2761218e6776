"""What grows by concatenation is placed in one map, and nobody sees the difference."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize import api
from binarize.exporting import emit, verify
from binarize.exporting.emit import own_nodes
from binarize.lowering import Lowered, any_sizes, lower
from tests.models import conv_bn, randomized

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(5))
GROWTH = 12


def dense_layer(channels: int, growth: int = GROWTH) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, growth, 3, padding=1, bias=False))


class Dense(nn.Module):
    """A dense block of three layers between a stem and a conv.

    `also` says what else reads the map of stage 1, `spelling` how stages are joined.
    """

    def __init__(self, also: str = "nobody", spelling: str = "all parts") -> None:
        super().__init__()
        self.also, self.spelling = also, spelling
        self.stem = conv_bn(3, 24)
        self.layers = nn.ModuleList(dense_layer(24 + i * GROWTH) for i in range(3))
        self.last = dense_layer(24 + 3 * GROWTH, 16)
        self.aside = nn.Conv2d(24 + GROWTH, 24 + GROWTH, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        parts = [self.stem(x)]
        for index, layer in enumerate(self.layers):
            joined = torch.cat(parts, 1)
            if index == 1:
                stage = joined
            new = [layer(joined)]
            if self.spelling == "in front":
                parts = new + parts
            else:
                parts = ([joined] if self.spelling == "what was joined" else parts) + new
        y = self.head(self.last(torch.cat(parts, 1)).mean((2, 3)))
        if self.also == "the caller":
            return y, stage
        return y + self.aside(stage).mean() if self.also == "a conv" else y


def lowered(model: nn.Module, stream: str, *settings: str) -> tuple[Lowered, onnx.ModelProto]:
    """The two graphs and the file, which is proven to be equal."""
    config = api.resolve_config("el", None, [f"export.stream={stream}", *settings])
    module = randomized(binarize.apply(model, X, config=config)).eval()
    result = lower(module, (X,), config)
    if stream == "float32":
        with torch.no_grad():
            for got, wanted in zip(result.fused(X), result.original(X), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    file = emit(result, (X,))
    verify(result, file, (X,))
    return result, file


def joins(file: onnx.ModelProto) -> tuple[int, int]:
    """How many nodes place a map in a wider one, and how many concatenate."""
    return len(own_nodes(file, "Place")), sum(node.op_type == "Concat" for node in file.graph.node)


@pytest.mark.parametrize("spelling", ["all parts", "what was joined"])
@pytest.mark.parametrize("stream", ["float32", "float16"])
def test_a_dense_block_copies_nothing_twice(stream: str, spelling: str) -> None:
    _, file = lowered(Dense(spelling=spelling), stream)
    assert joins(file) == (4, 0)  # the stem's map and one for each layer
    widths = [node.attribute[0].i for node in own_nodes(file, "Activate")]
    assert {24 + i * GROWTH for i in range(1, 4)} <= {*widths}


@pytest.mark.parametrize("also", ["the caller", "a conv"])
def test_a_stage_that_others_read_is_a_map_of_its_own(also: str) -> None:
    _, file = lowered(Dense(also), "float32")
    assert joins(file) == (4, 1)


def test_parts_that_come_in_front_are_concatenated() -> None:
    """Where the new channels come first, no stage begins with the one before."""
    _, file = lowered(Dense(spelling="in front"), "float32")
    assert joins(file) == (0, 3)


def test_maps_of_any_size_are_concatenated() -> None:
    """A runtime knows no two of them to have one size, and would copy the whole map for each part."""
    config = api.resolve_config("el", None, [])
    module = randomized(binarize.apply(Dense(), X, config=config)).eval()
    result = lower(module, (X,), config, shapes=any_sizes((X,)))
    assert joins(emit(result, (X,))) == (0, 3)


class FromNothing(nn.Module):
    """Columns gathered from an empty tensor on, which torch allows to have another rank."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(3, 8), conv_bn(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(torch.cat([torch.zeros(0), x, x], -1)).mean((2, 3))


def test_an_empty_part_of_another_rank_is_no_reason_to_fail() -> None:
    lowered(FromNothing(), "float32")


def test_densenet_has_no_concatenation_left() -> None:
    torchvision = pytest.importorskip("torchvision")
    small = torchvision.models.DenseNet(growth_rate=8, block_config=(2, 3, 2), num_init_features=16, num_classes=5)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    config = api.resolve_config("el", None, [])
    result = lower(randomized(binarize.apply(small, image, config=config)).eval(), (image,), config)
    file = emit(result, (image,))
    verify(result, file, (image,))
    assert joins(file) == (3 + 4 + 3, 0)
