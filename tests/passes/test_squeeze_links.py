"""A map that is only summed to a link is never written, and nobody sees the difference."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from binarize.exporting.emit import binary_nodes, own_nodes
from binarize.passes.lower_tools import packed_convs
from tests.models import conv_bn
from tests.passes.test_grow_maps import lowered


class Preactivated(nn.Module):
    """Batch norm and ReLU before a conv of 80 to `out` channels; `also` says who else reads what it reads."""

    def __init__(self, out: int = 32, also: str = "nobody", **conv: int) -> None:
        super().__init__()
        self.also = also
        self.stem = conv_bn(3, 80)
        self.norm, self.relu = nn.BatchNorm2d(80), nn.ReLU()
        self.conv = nn.Conv2d(80, out, bias=False, **{"kernel_size": 1, **conv})
        self.aside = nn.Conv2d(80, out, 1)
        self.head = nn.Linear(out, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.conv(x)
        if self.also == "a conv":
            y = y + self.aside(x)
        if self.also == "a residual":
            y = y + x[:, : y.shape[1]]
        return self.head(y.mean((2, 3)))


class FromStem(nn.Module):
    """A float stem whose norm and activation only a squeezing conv reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(3, 48, 3, bias=False), nn.BatchNorm2d(48), nn.ReLU()
        self.conv, self.head = nn.Conv2d(48, 16, 1, bias=False), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.relu(self.norm(self.stem(x)))).mean((2, 3)))


@pytest.mark.parametrize("out", [16, 32, 48])
@pytest.mark.parametrize("stream", ["float32", "float16"])
def test_the_link_of_a_squeezing_conv_is_summed_where_its_map_is_made(stream: str, out: int) -> None:
    result, file = lowered(Preactivated(out), stream)
    squeezed = own_nodes(file, "ActivateLink")
    assert len(squeezed) == 1 and not own_nodes(file, "Activate")
    conv = packed_convs(result.fused)[-1]
    assert conv.absent("link") and not conv.absent("residual")
    assert binary_nodes(file)[-1].input[6] == squeezed[0].output[0]


def test_an_int8_stem_takes_in_its_activation() -> None:
    _, file = lowered(FromStem(), "float32", "export.stem=int8")
    assert len(own_nodes(file, "Activate")) == 1 and not own_nodes(file, "ActivateLink")
    _, file = lowered(FromStem(), "float32")
    assert len(own_nodes(file, "ActivateLink")) == 1


@pytest.mark.parametrize(
    "model",
    [
        Preactivated(also="a conv"),
        Preactivated(also="a residual"),
        Preactivated(out=40),
        Preactivated(out=80),
        Preactivated(out=96),
        Preactivated(kernel_size=3, padding=1),
        Preactivated(stride=2),
        Preactivated(groups=2),
    ],
    ids=["two readers", "a residual", "40 channels", "identity", "expanding", "3x3", "strided", "groups"],
)
def test_other_maps_are_kept(model: nn.Module) -> None:
    _, file = lowered(model, "float32")
    assert not own_nodes(file, "ActivateLink")
