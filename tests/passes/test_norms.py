"""Norms that are not torch's own, and weights that are computed from others."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import binarize
from binarize.exporting import emit, verify
from binarize.lowering import lower
from binarize.nn import BinaryConv, RPReLU
from tests.models import randomized

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class NormAct(nn.BatchNorm2d):
    """A batch norm that ends in dropout and an activation, as timm has it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


class Doubling(NormAct):
    """Something else comes before the activation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(2 * nn.BatchNorm2d.forward(self, x) - 1)


class Frozen(nn.Module):
    """A batch norm of buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 2.0), ("bias", 0.5), ("running_mean", 0.1), ("running_var", 3.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        w, b, m, v = (getattr(self, n)[:, None, None] for n in ("weight", "bias", "running_mean", "running_var"))
        return x * (w * (v + 1e-5).rsqrt()) + (b - m * w * (v + 1e-5).rsqrt())


def net(norm: type[nn.Module]) -> nn.Sequential:
    """Stem, two convs to be binarized with a norm each, a head."""
    torch.manual_seed(0)
    act = [] if issubclass(norm, NormAct) else [nn.ReLU()]
    layers = [nn.Conv2d(3, 8, 3), norm(8), *act, nn.Conv2d(8, 8, 3), norm(8), *act, nn.Conv2d(8, 8, 3), norm(8)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def proved(module: nn.Module) -> None:
    module = randomized(module).eval()
    lowered = lower(module, (X,))
    assert not verify(lowered, emit(lowered, (X,)), (X,)).failures
    with torch.no_grad():
        torch.testing.assert_close(lowered.original(X), module(X), rtol=1e-4, atol=1e-5)


def step(module: nn.Module) -> None:
    module.train()
    module(X).square().mean().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()


def test_an_activation_inside_a_norm_is_replaced_like_any_other() -> None:
    model = net(NormAct).eval()
    names = set(model.state_dict())
    module = binarize.apply(model, X)
    kinds = [type(m) for _, m in module.named_modules()]
    assert kinds.count(RPReLU) == 2 and kinds.count(nn.BatchNorm2d) == 3 and NormAct not in kinds
    assert names <= set(module.state_dict())
    assert isinstance(module.get_submodule("5.act"), nn.ReLU), "no sign sees the last one, which stays"
    assert isinstance(model[1], NormAct), "the original is untouched"
    step(copy.deepcopy(module))
    proved(module)


def test_taking_a_norm_apart_changes_no_value() -> None:
    model = net(NormAct).eval()
    config = binarize.Config().updated({"surgery": {"keep": ["2", "4"], "activation": "keep"}})
    module = binarize.apply(model, X, config=config)
    with torch.no_grad():
        torch.testing.assert_close(module(X), model(X))
    assert type(module.get_submodule("3")) is nn.BatchNorm2d


def test_a_norm_that_computes_something_else_stays_whole() -> None:
    module = binarize.apply(net(Doubling).eval(), X)
    assert isinstance(module.get_submodule("1"), Doubling)


def test_frozen_norms_thaw_behind_binary_convs_only() -> None:
    model = net(Frozen).eval()
    module = binarize.apply(model, X)
    stem, first = module.get_submodule("1"), module.get_submodule("4")
    assert isinstance(stem, Frozen) and isinstance(first, nn.BatchNorm2d)
    assert first.weight.tolist() == [2.0] * 8 and first.running_var.tolist() == [3.0] * 8
    assert first.weight.requires_grad and first.eps == 1e-5
    assert isinstance(model[4], Frozen) and not list(model[4].parameters())
    step(module)
    assert first.weight.tolist() != [2.0] * 8 and stem.weight.tolist() == [2.0] * 8
    assert first.running_var.tolist() != [3.0] * 8 and first.num_batches_tracked == 1
    proved(copy.deepcopy(module))


def test_a_frozen_norm_behind_a_float_conv_is_a_batch_norm_to_onnx_runtime() -> None:
    module = binarize.apply(net(Frozen).eval(), X).eval()
    model = emit(lower(module, (X,)), (X,))
    counts = [node.op_type for node in model.graph.node]
    assert "Sqrt" not in counts and counts.count("Mul") == 0


def old_weight_norm(conv: nn.Module) -> nn.Module:
    return torch.nn.utils.weight_norm(conv)


def old_spectral_norm(conv: nn.Module) -> nn.Module:
    return torch.nn.utils.spectral_norm(conv)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "parametrized",
    [parametrizations.weight_norm, parametrizations.spectral_norm, old_weight_norm, old_spectral_norm],
    ids=["weight_norm", "spectral_norm", "old weight_norm", "old spectral_norm"],
)
def test_computed_weights(parametrized) -> None:
    """Binary convs get the value as their latent weight; the float stem stays computed and trains so."""
    model = net(nn.BatchNorm2d)
    for place in (0, 3, 6):
        parametrized(model[place])
    model.train()
    model(X)  # leaves tensors with a history behind
    model.eval()
    with torch.no_grad():
        model(X)
    module = binarize.apply(model, X)
    conv = module.get_submodule("3")
    assert isinstance(conv, BinaryConv) and "weight" in dict(conv.named_parameters())
    torch.testing.assert_close(conv.weight.detach(), model[3].weight.detach(), rtol=1e-4, atol=1e-5)
    assert not [name for name in conv.state_dict() if name.endswith(("_v", "_g", "_orig", "original"))]
    step(module)
    assert conv.weight.grad is not None
    stem = dict(module.get_submodule("0").named_parameters())
    assert any(p.grad is not None for name, p in stem.items() if name != "bias") and "weight" not in stem
    proved(module)


def test_what_a_forward_leaves_behind_does_not_hinder_a_copy() -> None:
    class Keeping(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            self.seen = {"maps": [y]}
            return y

    model = Keeping(*net(nn.BatchNorm2d))
    model(X)
    module = binarize.apply(model, X)
    module(X)
    lower(module, (X,))
