"""Models that are unusual but legal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import binarize
from binarize.errors import UsageError
from binarize.nn import BinaryConv2d, ElasticLink, RPReLU
from binarize.training.calibration import calibrate

X = torch.randn(2, 3, 16, 16)


class Net(nn.Module):
    """Stem, a conv with a batch norm whose name surgery would give to one of its own, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv_bn, self.head = nn.BatchNorm2d(8), nn.Linear(8, 2)

    def features(self, x: Tensor) -> Tensor:
        return self.conv_bn(self.conv(torch.relu(self.stem(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def test_calibration_leaves_the_models_own_batch_norms_alone() -> None:
    model = Net().eval()
    nn.init.uniform_(model.conv_bn.weight, 2, 3)
    module = binarize.apply(model, X)
    calibrate(module, model, [X])
    assert torch.equal(module.get_submodule("conv_bn").weight, model.conv_bn.weight)


def test_an_inserted_batch_norm_gets_the_float_convs_statistics_whatever_its_name() -> None:
    class Taken(Net):
        def features(self, x: Tensor) -> Tensor:
            return self.conv(self.conv_bn(torch.relu(self.stem(x))))

    model = Taken().eval()
    module = binarize.apply(model, X)
    calibrate(module, model, [X])
    expected = model.features(X).mean((0, 2, 3))
    torch.testing.assert_close(module.get_submodule("conv_bn_2").bias, expected)


def test_a_conv_may_be_called_by_keyword() -> None:
    class Keyword(Net):
        def features(self, x: Tensor) -> Tensor:
            return self.conv_bn(self.conv(input=torch.relu(self.stem(input=x))))

    torch.manual_seed(0)
    model = Keyword().eval()
    positional = Net().eval()
    positional.load_state_dict(model.state_dict())
    assert torch.equal(binarize.apply(model, X)(X), binarize.apply(positional, X)(X))


def test_an_error_without_words_is_still_reported() -> None:
    class Unfinished(Net):
        def features(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            raise NotImplementedError

    with pytest.raises(UsageError, match="NotImplementedError"):
        binarize.apply(Unfinished(), X)


def test_a_weighted_shortcut_is_no_identity() -> None:
    class Weighted(Net):
        def features(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return torch.add(self.conv_bn(self.conv(x)), x, alpha=0.1)

    module = binarize.apply(Weighted().eval(), X)
    assert {d.residual for d in module.report.decisions} == {"none"}


def test_functional_convs_are_decisions_too() -> None:
    class Functional(Net):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3))

        def features(self, x: Tensor) -> Tensor:
            return self.conv_bn(self.conv(torch.relu(nn.functional.conv2d(x, self.kernel, padding=1))))

    report = binarize.apply(Functional().eval(), X).report
    found = {d.rule: d for d in report.decisions}
    assert found["functional"].macs == 8 * 3 * 9 * X.shape[2] * X.shape[3]
    assert "eligible" in found and "stem" not in found
    assert report.binary_mac_share < 1


def test_a_nonlinear_shortcut_is_no_identity() -> None:
    class Gated(Net):
        def features(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.conv_bn(self.conv(x)) + torch.sigmoid(x)

    module = binarize.apply(Gated().eval(), X)
    assert {d.residual for d in module.report.decisions} == {"none"}


def test_the_configs_own_recipe_counts_unless_one_is_given(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('recipe = "bireal"\n')
    assert binarize.apply(Net().eval(), X, config=file).report.config["link"]["kind"] == "identity"
    assert binarize.apply(Net().eval(), X, "el", file).report.config["link"]["kind"] == "elastic"


def conv3(c: int, o: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c, o, 3, stride, 1, bias=False)


class Alike(nn.Module):
    """A conv whose name is that of another one's link, and a conv that runs twice on one value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down_link, self.down, self.twice = conv3(3, 8), conv3(8, 8), conv3(8, 8), conv3(8, 8)
        self.norms, self.head = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.norms
        x = torch.relu(self.stem(x))
        y = torch.relu(a(self.down_link(x)) * b(self.down(x)))
        return self.head((c(self.twice(y)) - 2 * d(self.twice(y))).mean((2, 3)))


@pytest.mark.parametrize("position", ["pre_bn", "post_bn"])
def test_every_call_of_every_conv_has_its_link(position: str) -> None:
    config = binarize.Config().with_settings([f"link.position={position}"])
    module = binarize.apply(Alike().eval(), X, config=config)
    assert isinstance(module, GraphModule)
    called = [type(module.get_submodule(n.target)) for n in module.graph.nodes if n.op == "call_module"]
    assert called.count(BinaryConv2d) == called.count(ElasticLink) == 4


class ScaledProjection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.projection = conv3(3, 8), conv3(8, 16, 2), conv3(16, 16), conv3(8, 16, 2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(3)])
        self.scale, self.head = nn.Parameter(torch.full((1, 16, 1, 1), 0.7)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.norms
        x = torch.relu(self.stem(x))
        x = torch.relu(b(self.two(torch.relu(a(self.one(x))))) + c(self.projection(x)) * self.scale)
        return self.head(x.mean((2, 3)))


def test_a_projection_moves_with_the_constants_it_needs() -> None:
    """Recipes without Elastic Links add a projection to the first conv, which stands before the parameter in it."""
    module = binarize.apply(ScaledProjection().eval(), X, recipe="bireal")
    assert {d.layer: d.residual for d in module.report.binarized}["one"] == "projection"  # type: ignore[union-attr]
    assert torch.isfinite(module(X)).all()


class Between(nn.Module):
    """A function of the map between two convs that become binary."""

    def __init__(self, function: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.gate, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(torch.relu(self.stem(x)))
        return self.head(self.second(self.function(y, self.gate)).mean((2, 3)))


def _squeezed(y: Tensor, gate: nn.Module) -> Tensor:
    return gate(y.mean((2, 3), keepdim=True))


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda y, gate: y * F.relu6(y + 3) / 6, True),
        (lambda y, gate: y * F.hardtanh(y + 3, 0.0, 6.0).div(6), True),
        (lambda y, gate: y * (F.relu6(_squeezed(y, gate) + 3) / 6), True),
        (lambda y, gate: y * (torch.clamp(_squeezed(y, gate) + 3, 0, 6) / 6), True),
        (lambda y, gate: y / y.norm(dim=1, keepdim=True).clamp(min=1e-3), True),
        (lambda y, gate: y / (1 + F.relu(y).sum(1, keepdim=True)), True),
        (lambda y, gate: y.clamp(min=1e-6).sqrt(), True),
        (lambda y, gate: F.relu6(y), False),
        (lambda y, gate: y.clamp(0, 6), False),
        (lambda y, gate: F.relu(y) / 2, False),
        (lambda y, gate: (lambda r: r * torch.sigmoid(_squeezed(r, gate)))(F.relu6(y)), False),
    ],
    ids=[
        "hard swish", "by hardtanh", "hard sigmoid of a gate", "the same by clamp", "norm", "sum as a divisor",
        "root", "relu6", "clamp", "halved", "scaled by its own gate",
    ],
)  # fmt: skip
def test_clips_that_give_no_features_stay(function: Callable[[Tensor, nn.Module], Tensor], kept: bool) -> None:
    """A gate that lost its bounds made a square of a hard swish; a divisor that lost them was 0 on a dead map."""
    binary = binarize.apply(Between(function).eval(), torch.randn(2, 3, 8, 8))
    assert {"first", "second"} <= {decision.layer for decision in binary.report.binarized}
    replaced = [name for name, module in binary.named_modules() if isinstance(module, RPReLU)]
    assert len(replaced) == (1 if kept else 2), binary.code  # one is the stem's
