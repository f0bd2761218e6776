"""Models that one trace cannot hold: regions, the record of what ran, and what both know about the whole model."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.nn import BinaryConv2d, ElasticLink, Region, RPReLU
from binarize.passes.capture import capture
from tests.models import BasicBlock, EveryConv, conv_bn

X = torch.randn(2, 3, 16, 16)


class Body(nn.Module):
    """Stem, block and last conv, called by code that looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = conv_bn(3, 8), BasicBlock(8, 8)
        self.direct, self.direct_bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x))
        if float(x.sum()) > 1e9:
            return x
        x = self.direct_bn(self.direct(x))
        return self.last(x).mean((2, 3))


def rules(module: nn.Module) -> dict[str, str]:
    return {d.layer: d.rule for d in module.report.decisions}  # type: ignore[union-attr]


def test_what_cannot_be_traced_stays_the_users_code_and_its_convs_are_binarized() -> None:
    model = Body().eval()
    module = binarize.apply(model, X)
    assert type(module) is Body and isinstance(module.block, Region) and isinstance(module.stem, Region)
    assert rules(module) == {
        "stem.0": "stem",
        "block.conv1": "eligible",
        "block.conv2": "eligible",
        "direct": "eligible",
        "last": "classifier",
    }
    (spot,) = module.report.untraced
    assert "test_capture.py" in spot and "float(x.sum())" in spot
    assert module(X).shape == (2, 2)


def test_the_stems_activation_meets_a_sign_in_another_region() -> None:
    module = binarize.apply(Body(), X)
    assert any(isinstance(m, RPReLU) for m in module.stem.modules())  # type: ignore[union-attr]


def test_a_conv_in_untraced_code_keeps_its_name_and_gets_its_link_before_the_users_batch_norm() -> None:
    model = Body().eval()
    module = binarize.apply(model, X)
    conv = module.direct
    assert isinstance(conv, BinaryConv2d) and torch.equal(conv.weight, model.direct.weight)
    assert set(model.state_dict()) <= set(module.state_dict())
    (link,) = [m for m in conv.modules() if isinstance(m, ElasticLink)]
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(conv(x), conv.convolve(x) + link(x))


def test_shared_modules_are_one_decision_with_the_cost_of_every_call() -> None:
    class Tower(Body):
        def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
            maps = [self.stem(x), self.stem(x[..., ::2, ::2])]
            return [self.last(self.direct(m)) for m in maps if m.shape[0] == len(m)]

    module = binarize.apply(Tower(), X)
    (direct,) = [d for d in module.report.decisions if d.layer == "direct"]
    assert direct.macs == 8 * 8 * 9 * (16 * 16 + 8 * 8)
    assert [y.shape[-1] for y in module(X)] == [16, 8]


def test_in_place_changes_that_the_model_counts_on_stay() -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
            self.relu = nn.ReLU(inplace=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            shortcut = x = self.stem(x)
            x = self.conv(self.relu(x)) * 0
            return self.head((x + shortcut).mean((2, 3)))

    model = Aliased().eval()
    nn.init.zeros_(model.conv.weight)
    module = binarize.apply(model, X).eval()
    assert "in-place" in module.report.untraced[0]
    torch.testing.assert_close(module(X), model(X))


def test_parts_that_run_in_train_mode_only_are_kept_and_run() -> None:
    class Auxiliary(EveryConv):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Conv2d(16, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:  # type: ignore[override]
            y = super().forward(x)
            return (y, self.aux(self.stem(x))) if self.training else y

    module = binarize.apply(Auxiliary(), X)
    assert rules(module)["aux"] == "unused" and "aux.weight" in module.state_dict()
    assert len(module.train()(X)) == 2 and isinstance(module.eval()(X), Tensor)
    assert "train mode" in module.report.untraced[0]


def test_functional_dropout_follows_the_mode_in_one_graph() -> None:
    class Dropping(EveryConv):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), 0.5, training=self.training)

    module = binarize.apply(Dropping(), X)
    assert isinstance(module, Region)
    torch.testing.assert_close(module.eval()(X), module(X))
    module.train()
    torch.manual_seed(1)
    assert (module(X) == 0).any()


def test_unused_parameters_survive_a_whole_trace() -> None:
    class Idle(EveryConv):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
            self.token = nn.Parameter(torch.ones(3))
            self.register_buffer("hidden", torch.ones(1), persistent=False)

    model = Idle()
    module = binarize.apply(model, X)
    assert isinstance(module, Region)
    assert set(model.state_dict()) <= set(module.state_dict()) and "hidden" not in module.state_dict()


def test_flags_dictionaries_and_lists() -> None:
    class Flags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = EveryConv(), nn.Conv2d(3, 2, 1)

        def forward(self, batch: dict[str, Tensor], sizes: list[int] | None = None, full: bool = True) -> object:
            x = batch["image"] if sizes is None else batch["image"][..., : sizes[0]]
            return OrderedDict(out=self.body(x), low=[self.last(x)]) if full else self.body(x)

    batch = {"image": X}
    module = binarize.apply(Flags(), (batch, None, False))
    assert rules(module)["body.odd"] == "eligible" and rules(module)["last"] == "unused"
    assert module(batch, full=False).shape == (2, 5)


def test_what_ran_is_recorded_as_one_graph() -> None:
    captured = capture(Body(), (X,))
    flow = [n for n in captured.recording.graph.nodes if n.op == "call_module"]
    assert str(flow[0].meta["path"]) == "stem.0" and str(flow[-1].meta["path"]) == "last"
    assert all("shape" in n.meta for n in flow)


def test_surgery_needs_no_values() -> None:
    module = binarize.apply(EveryConv().to("meta"), X.to("meta"))
    assert module(X.to("meta")).shape == (2, 5)
    assert {p.device.type for p in module.parameters()} == {"meta"}


@torch.fx.wrap
def rolled(x: Tensor, shifts: list[int]) -> Tensor:
    shifts[0] += 1
    return torch.roll(x, shifts, (2, 3))


def test_functions_that_write_into_their_lists() -> None:
    class Rolling(EveryConv):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(rolled(x, [0, 1]))

    assert isinstance(binarize.apply(Rolling(), X), Region)


def test_a_block_that_is_dropped_in_training_stays_in_one_region() -> None:
    class DropPath(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5)) if self.training else x

    module = binarize.apply(nn.Sequential(conv_bn(3, 8), DropPath(), conv_bn(8, 8), nn.Conv2d(8, 2, 1)), X)
    assert isinstance(module, Region)
    torch.testing.assert_close(module.eval()(X), module(X))
    assert not torch.equal(module.train()(X), module(X))


class Scaled(nn.Module):
    """A part that the code around it asks for more than a forward."""

    scale = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    @property
    def width(self) -> int:
        return self.conv.out_channels

    def forward(self, x):
        return self.conv(x).relu()


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part, self.end = nn.Conv2d(3, 8, 3), Scaled(), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        x = self.stem(x)
        if float(x.sum()) == 0.5:  # no graph holds this
            return x
        return self.end(self.part(x) * self.part.scale / self.part.width)


def test_code_around_a_region_finds_what_its_class_had() -> None:
    module = binarize.apply(Asking().eval(), torch.randn(2, 3, 12, 12)).eval()
    x = torch.randn(2, 3, 12, 12)
    assert isinstance(module.part, Region) and module.part.width == 8
    y = module(x)
    assert torch.equal(copy.deepcopy(module)(x), y)
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = module.part.nothing_such
    pickle.loads(pickle.dumps(module.part))
