"""Channel shuffles are one operator with what they join and split, and nobody sees the difference."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize import api
from binarize.exporting import emit, verify
from binarize.exporting.emit import own_nodes
from binarize.lowering import any_sizes, lower
from tests.models import conv_bn, randomized

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(5))
LEFT = ("Transpose", "Concat", "Split", "Gather")


def shuffled(x: Tensor, groups: int, spelling: str) -> Tensor:
    n, c, h, w = x.shape
    grouped = x.view(n, groups, c // groups, h, w)
    turned = grouped.permute(0, 2, 1, 3, 4) if spelling == "permute" else torch.transpose(grouped, 1, 2)
    return turned.contiguous().view(n, c, h, w)


class Shuffling(nn.Module):
    """Two convs of a stem, joined, shuffled and read by others: whole, in two parts, or in uneven ones."""

    def __init__(self, groups: int = 2, read: str = "halves", joins: int = 2, spelling: str = "transpose") -> None:
        super().__init__()
        self.groups, self.read, self.spelling = groups, read, spelling
        self.stem = conv_bn(3, 24)
        self.branches = nn.ModuleList(conv_bn(24, 72 // joins, 1) for _ in range(joins))
        sizes = {"whole": [72], "halves": [36, 36], "uneven": [5, 40, 27]}[read]
        self.sizes = sizes
        self.readers = nn.ModuleList(conv_bn(size, 16) for size in sizes)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branches = [branch(x) for branch in self.branches]
        y = shuffled(torch.cat(branches, 1) if len(branches) > 1 else branches[0], self.groups, self.spelling)
        parts = y.chunk(2, 1) if self.read == "halves" else y.split(self.sizes, 1) if self.read == "uneven" else [y]
        return self.head(sum(reader(part).mean((2, 3)) for reader, part in zip(self.readers, parts, strict=True)))


def exported(model: nn.Module, *settings: str, sizes: bool = False) -> onnx.ModelProto:
    """The file, which is proven to be equal."""
    config = api.resolve_config("el", None, list(settings))
    module = randomized(binarize.apply(model, X, config=config)).eval()
    result = lower(module, (X,), config, shapes=any_sizes((X,)) if sizes else None)
    with torch.no_grad():
        if "export.stream=float16" not in settings:
            torch.testing.assert_close(result.fused(X), result.original(X), rtol=1e-4, atol=1e-4)
    file = emit(result, (X,))
    verify(result, file, (X,))
    return file


def gathered(file: onnx.ModelProto) -> tuple[int, list[str]]:
    """How many nodes gather channels, and what else moves maps; the stem has a layout of its own."""
    return len(own_nodes(file, "GatherChannels")), [n.op_type for n in file.graph.node if n.op_type in LEFT]


@pytest.mark.parametrize("stream", ["float32", "float16"])
@pytest.mark.parametrize(("read", "nodes"), [("whole", 1), ("halves", 2), ("uneven", 3)])
def test_joining_shuffling_and_splitting_are_one_pass(read: str, nodes: int, stream: str) -> None:
    file = exported(Shuffling(read=read), f"export.stream={stream}")
    assert gathered(file) == (nodes, ["Transpose"])


@pytest.mark.parametrize("spelling", ["transpose", "permute"])
@pytest.mark.parametrize(("groups", "joins"), [(2, 1), (3, 2), (8, 2), (36, 1), (4, 3)])
def test_groups_of_any_number_in_maps_of_any_parts(groups: int, joins: int, spelling: str) -> None:
    """Three parts are concatenated before."""
    file = exported(Shuffling(groups, "halves", joins, spelling))
    assert gathered(file) == (2, ["Transpose", *["Concat"] * (joins == 3)])


def test_maps_of_any_size_are_shuffled_too() -> None:
    file = exported(Shuffling(), sizes=True)
    assert gathered(file)[0] == 2
    session = binarize.InferenceSession(file.SerializeToString())
    assert session.run(None, {"input": torch.randn(1, 3, 20, 16).numpy()})[0].shape == (1, 5)


def test_a_shuffle_that_others_read_whole_is_made_whole() -> None:
    class Both(Shuffling):
        def forward(self, x: Tensor) -> Tensor:
            y = shuffled(torch.cat([branch(self.stem(x)) for branch in self.branches], 1), 2, "transpose")
            return self.head(self.readers[0](y.chunk(2, 1)[1]).mean((2, 3)) + self.readers[1](y).mean((2, 3)))

    both = Both()
    both.readers[1] = conv_bn(72, 16)
    assert gathered(exported(both)) == (1, ["Transpose", "Split"])


def test_numbers_that_are_no_floats_are_shuffled_as_they_were() -> None:
    """A mask or an index map in the shape of a shuffle: the operator moves floats alone."""

    class Masked(Shuffling):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.cat([branch(self.stem(x)) for branch in self.branches], 1)
            ranks = (y.mean((2, 3), keepdim=True) * 10).to(torch.int64).expand_as(y).permute(0, 2, 3, 1)
            turned = ranks.reshape(*ranks.shape[:3], 2, 36).transpose(3, 4).reshape(ranks.shape)
            kept = y * (turned.permute(0, 3, 1, 2) % 2 == 0)
            return self.head(self.readers[0](kept).mean((2, 3)))

    model = Masked(read="whole")
    assert gathered(exported(model))[0] == 0


def test_shufflenet_has_no_layout_node_left() -> None:
    torchvision = pytest.importorskip("torchvision")
    small = torchvision.models.ShuffleNetV2([2, 2, 1], [12, 16, 24, 32, 48], num_classes=5)
    file = exported(small)
    assert gathered(file) == (2 * (2 + 1) + 1, ["Transpose"]), "units read halves, stages whole maps"
