"""The plan's rules, each on the smallest net that shows it, and on known models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.config import Config
from binarize.errors import UnsupportedModelError, UsageError
from binarize.passes.rules import RULES, TRAITS
from binarize.report import Decision
from tests.models import BasicBlock, EveryConv, SqueezeExcite, conv_bn

X = torch.randn(2, 3, 32, 32)


def plan(model: nn.Module, *settings: str, x: Tensor = X) -> dict[str, Decision]:
    report = binarize.inspect(model.eval(), (x,), config=Config().with_settings(settings))
    return {d.layer: d for d in report.decisions}


def rules(model: nn.Module, *settings: str, x: Tensor = X) -> dict[str, str]:
    return {layer: d.rule for layer, d in plan(model, *settings, x=x).items()}


class Between(nn.Module):
    """Stem, `inside`, classifier."""

    def __init__(self, inside: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.stem, self.inside, self.last = conv_bn(3, 8), inside, nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.last(self.inside(self.stem(x)))
        return last


def test_the_documentation_has_every_rule_in_order_and_every_trait() -> None:
    text = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
    rows = [tuple(c.strip() for c in line.strip("|\n").split(" | ")) for line in text.splitlines() if line[:3] == "| `"]
    documented = [row for row in rows if len(row) == 4]
    assert documented == [
        (f"`{r.name}`", r.reason, (r.applies.__doc__ or "").splitlines()[0], "yes" if r.planned else "no")
        for r in RULES
    ]
    assert [re.sub("`", "", row[0]) for row in rows if len(row) == 2] == list(TRAITS)


def test_a_1x1_map_that_grows_with_the_input_is_no_gate() -> None:
    """At 32 x 32 both maps are 1x1; only the pooled one stays so."""
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1))
    strided = nn.Sequential(nn.Conv2d(8, 8, 3, 32, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    found = rules(Between(nn.Sequential(strided, pooled)))
    assert (found["inside.0.2"], found["inside.1.1"]) == ("eligible", "gate")


def test_a_net_of_one_input_size_is_judged_by_that_size() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.deep, self.top = conv_bn(3, 8), nn.Conv2d(8, 8, 3, 32, 1), nn.Conv2d(8, 8, 1)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.top(self.deep(self.stem(x))).flatten(1))

    assert rules(Fixed())["top"] == "gate"


class SpatialAttention(nn.Module):
    """A full-size map of factors per position, one channel wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * torch.sigmoid(self.conv(x)).mean(1, keepdim=True)


class Recurrent(nn.Module):
    """An update gate as large as what it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.update, self.candidate = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.sigmoid(self.update(x))
        return (1 - z) * x + z * torch.tanh(self.candidate(x))


class HandWrittenSwish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * y.sigmoid()


class SelfScaled(nn.Module):
    """Attention without weights of its own: nothing here is a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * torch.sigmoid(y.mean((2, 3), keepdim=True))


class LinearGate(nn.Module):
    """Squeeze-excite with linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * torch.sigmoid(self.fc2(torch.relu(self.fc1(y.mean((2, 3))))))[:, :, None, None]


@pytest.mark.parametrize(
    ("inside", "gates"),
    [
        (SqueezeExcite(8), {"fc1", "fc2"}),
        (SpatialAttention(4), {"conv"}),
        (Recurrent(), set()),
        (HandWrittenSwish(), set()),
        (SelfScaled(), set()),
        (LinearGate(), {"fc1", "fc2"}),
    ],
)
def test_gates(inside: nn.Module, gates: set[str]) -> None:
    found = rules(Between(inside), "surgery.linear=all")
    assert {layer.removeprefix("inside.") for layer, rule in found.items() if rule == "gate"} == gates


def test_first_and_last_are_facts_of_the_dataflow() -> None:
    class TwoImages(nn.Module):
        """Two encoders, features that are compared by size only, two answers."""

        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.mix = conv_bn(3, 8), conv_bn(3, 8), conv_bn(16, 8)
            self.coarse, self.fine = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.mix(torch.cat([self.left(x), self.right(x.flip(3))], 1))
            return self.coarse(y), F.interpolate(self.fine(F.avg_pool2d(y, 2)), size=y.shape[2:])

    found = rules(TwoImages())
    assert [found[k] for k in ("left.0", "right.0", "mix.0", "coarse", "fine")] == [
        "stem",
        "stem",
        "eligible",
        "classifier",
        "classifier",
    ]


def test_thin_helpers_stay_float_but_a_gray_stem_is_a_stem() -> None:
    class ChannelAttention(nn.Module):
        """A 1-d conv over channels, as in ECA."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            weights = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
            return x + weights[:, :, None, None]

    narrow = nn.Sequential(nn.Conv2d(8, 1, 3, 1, 1), nn.Conv2d(1, 8, 3, 1, 1))
    found = rules(Between(narrow))
    assert (found["inside.0"], found["inside.1"]) == ("thin", "thin")
    assert rules(Between(ChannelAttention()))["inside.conv"] == "thin"
    gray = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    x = torch.randn(2, 1, 16, 16)
    assert rules(gray, x=x)["0"] == "stem"
    assert rules(gray, "surgery.binarize_stem=true", x=x)["0"] == "eligible"


def test_a_weight_that_is_computed_is_no_parameter() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernels = nn.Parameter(torch.randn(2, 8, 8, 3, 3))
            self.plain = nn.Parameter(torch.randn(8, 8, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.conv2d(x, self.kernels.sum(0), padding=1), self.plain, padding=1)

    found = plan(Between(Mixed()))
    assert [d.rule for d in found.values()] == ["stem", "classifier", "dynamic", "functional"]
    assert {d.macs for d in found.values() if d.kind == "functional"} == {8 * 8 * 9 * 32 * 32}


def test_keep_and_only_by_glob_module_rule_trait_and_kernel() -> None:
    model = EveryConv().eval()
    everything = {layer for layer, d in plan(model).items() if d.binarized}

    def left(*settings: str) -> set[str]:
        return everything - {layer for layer, d in plan(model, *settings).items() if d.binarized}

    assert left("surgery.keep=basic.1.*") == left("surgery.keep=basic.1") != set()
    assert left("surgery.keep=rule:depthwise") == {"inverted.body.1.0"}
    assert left("surgery.keep=rule:grouped") == {"grouped.0"}
    assert left("surgery.keep=rule:projection") == {"basic.1.down.0"}
    assert left("surgery.keep=rule:2x2") == {"even_kernel"}
    assert left("surgery.keep=rule:dilated") == {"dilated.0"}
    assert left('surgery.keep=["rule:strided", "odd"]') == {"basic.1.conv1", "basic.1.down.0", "odd"}
    assert everything - left("surgery.only=basic") == {layer for layer in everything if layer.startswith("basic.")}
    assert plan(model, "surgery.only=basic")["odd"].rule == "only"
    assert left("surgery.keep=rule:stem") == set()
    both = plan(model, "surgery.only=basic", "surgery.keep=rule:projection")
    assert both["basic.1.down.0"].rule == "keep"


def test_wrong_names_get_near_ones() -> None:
    with pytest.raises(UsageError, match="unknown rule 'depthwize'") as caught:
        plan(EveryConv(), "surgery.keep=rule:depthwize")
    assert "rule:depthwise" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="'basci' matches no convolution") as caught:
        plan(EveryConv(), "surgery.only=basci")
    assert "basic" in (caught.value.hint or "")


def test_strict_names_what_nobody_planned() -> None:
    plan(EveryConv(), "surgery.strict=true", "surgery.keep=odd")
    inside = nn.ConvTranspose2d(8, 8, 3, padding=1)
    with pytest.raises(UnsupportedModelError, match="transposed") as caught:
        plan(Between(inside), "surgery.strict=true")
    assert (caught.value.layer, caught.value.hint) == (
        "inside",
        "accept it with --keep rule:transposed, or leave out --strict",
    )


def test_strict_suggests_only_what_may_be_named() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.kernel, padding=1)

    with pytest.raises(UnsupportedModelError, match="called as a function") as caught:
        plan(Between(Functional()), "surgery.strict=true")
    assert caught.value.hint == "leave out --strict"


def test_blocks_and_their_forms() -> None:
    found = plan(nn.Sequential(conv_bn(3, 8), BasicBlock(8, 8), BasicBlock(8, 16, 2), nn.Conv2d(16, 2, 1)))
    blocks = {layer: (d.block, d.block_form) for layer, d in found.items()}
    assert blocks["1.conv1"] == blocks["1.conv2"] == ("1", "identity")
    assert blocks["2.conv1"] == blocks["2.down.0"] == ("2", "projection")
    assert blocks["0.0"] == blocks["3"] == ("", "none")


def test_every_squeeze_excite_of_a_mobilenet_is_a_gate_whatever_the_size() -> None:
    import torchvision
    from torchvision.ops import SqueezeExcitation

    model = torchvision.models.mobilenet_v3_small(weights=None)
    layers = {
        f"{n}.{fc}" for n, m in model.named_modules() if isinstance(m, SqueezeExcitation) for fc in ("fc1", "fc2")
    }
    for size in (32, 224):
        found: dict[str, Any] = plan(model, x=torch.zeros(2, 3, size, size))
        assert {layer for layer, d in found.items() if d.rule == "gate"} == layers, size
