"""What surgery does to networks: by effect, on real graphs."""

import pytest
import torch
from torch import nn

import binarize
from binarize.config import Config
from binarize.errors import UnsupportedModelError, UsageError
from binarize.nn import BinaryConv2d, ElasticLink, RPReLU
from tests.golden_decisions import check_decisions
from tests.models import (
    BasicBlock,
    Bottleneck,
    EveryConv,
    InvertedResidual,
    PreActivation,
    conv_bn,
    randomized,
)

X = torch.randn(2, 3, 32, 32)


def decisions(module):
    return {d.layer: d for d in module.report.decisions}


def settings(*values, recipe="el"):
    return binarize.api.resolve_config(recipe, None, values)


def test_every_conv_is_binarized_except_what_has_a_reason():
    module = binarize.apply(EveryConv(), X)
    kept = {d.layer: d.rule for d in module.report.kept}
    assert kept == {"stem.0": "stem", "inverted.body.2.fc1": "gate", "inverted.body.2.fc2": "gate"}
    binary = {name for name, m in module.named_modules() if isinstance(m, BinaryConv2d)}
    assert binary == {d.layer for d in module.report.binarized}
    assert {d.kind for d in module.report.binarized} == {"1x1", "2x2", "3x3", "depthwise", "grouped"}
    assert {d.link for d in module.report.binarized} == {"identity", "expand", "squeeze"}


def test_parameter_names_and_values_survive_and_the_original_is_untouched():
    model = EveryConv()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    module = binarize.apply(model, X)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    state = module.state_dict()
    missing = [k for k in before if k not in state]
    assert missing == []
    assert all(torch.equal(state[k], v) for k, v in before.items())
    assert any(m.inplace for m in model.modules() if isinstance(m, nn.ReLU))


def test_the_module_trains():
    module = binarize.apply(EveryConv(), X).train()
    module(X).square().sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None] == []


def test_batch_norms_are_inserted_exactly_where_missing():
    module = binarize.apply(EveryConv(), X)
    added = {name for name, m in module.named_modules() if isinstance(m, nn.BatchNorm2d) and name.endswith("_bn")}
    assert added == {"odd_bn", "even_kernel_bn"}


def test_activations_that_meet_a_sign_are_replaced_and_others_stay():
    model = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    module = binarize.apply(model, X)
    kinds = [type(m) for m in module.modules() if isinstance(m, RPReLU | nn.ReLU)]
    assert kinds.count(RPReLU) == 1 and kinds.count(nn.ReLU) == 1
    kept = binarize.apply(model, X, config=settings("surgery.activation=keep"))
    assert not any(isinstance(m, RPReLU) for m in kept.modules())


def test_a_shared_activation_is_replaced_per_call_site():
    module = binarize.apply(nn.Sequential(conv_bn(3, 8), BasicBlock(8, 8), BasicBlock(8, 8), nn.Conv2d(8, 2, 1)), X)
    slopes = [m.slope for m in module.modules() if isinstance(m, RPReLU)]
    # stem, twice in the first block, once in the second, whose last one feeds the float conv alone
    assert len(slopes) == 4


def test_a_basic_block_keeps_its_identity_and_its_closing_link_starts_at_zero():
    module = binarize.apply(nn.Sequential(conv_bn(3, 8), BasicBlock(8, 8), nn.Conv2d(8, 2, 1)), X)
    assert {decisions(module)[f"1.conv{i}"].residual for i in (1, 2)} == {"kept"}
    starts = [float(module.get_submodule(f"1.conv{i}_link").gamma.detach().max()) for i in (1, 2)]
    assert starts == [1.0, 0.0]


def test_links_can_replace_the_identity_of_a_basic_block():
    config = binarize.api.resolve_config("el", None, ["link.residual=replace"])
    module = binarize.apply(nn.Sequential(conv_bn(3, 8), BasicBlock(8, 8), nn.Conv2d(8, 2, 1)), X, config=config)
    assert {decisions(module)[f"1.conv{i}"].residual for i in (1, 2)} == {"replaced"}
    gammas = [m.gamma for m in module.modules() if isinstance(m, ElasticLink)]
    assert all((g == 1).all() for g in gammas)


def test_a_bottleneck_keeps_its_identity_and_its_closing_link_starts_at_zero():
    module = binarize.apply(nn.Sequential(conv_bn(3, 32), Bottleneck(32, 8), nn.Conv2d(32, 2, 1)), X)
    residuals = {d.residual for layer, d in decisions(module).items() if layer.startswith("1.")}
    assert residuals == {"kept"}
    starts = {n: float(m.gamma.detach().max()) for n, m in module.named_modules() if isinstance(m, ElasticLink)}
    assert starts == {"1.body.0_link": 0.25, "1.body.3_link": 1.0, "1.body.6_link": 0.0}


def test_a_projection_starts_its_own_link_at_zero():
    module = binarize.apply(nn.Sequential(conv_bn(3, 8), BasicBlock(8, 16, 2), nn.Conv2d(16, 2, 1)), X)
    assert float(module.get_submodule("1.down.0_link").gamma.detach().abs().max()) == 0
    assert float(module.get_submodule("1.conv2_link").gamma.detach().min()) == 1


def test_a_gate_between_keeps_the_identity_and_the_closing_link_starts_at_zero():
    gated = binarize.apply(nn.Sequential(conv_bn(3, 8), InvertedResidual(8), nn.Conv2d(8, 2, 1)), X)
    assert decisions(gated)["1.body.3"].residual == "kept"
    assert float(gated.get_submodule("1.body.3_link").gamma.detach().abs().max()) == 0
    assert float(gated.get_submodule("1.body.0.0_link").gamma.detach().min()) == 1


def test_a_channel_shuffle_inside_a_block_does_not_hide_it():
    """Its view reads sizes off the tensor, and these are no features that enter the block from outside."""

    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = conv_bn(16, 8, 1), conv_bn(8, 16, 1)

        def forward(self, x):
            n, c, h, w = self.conv1(x).size()
            y = self.conv1(x).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            return torch.relu(self.conv2(y) + x)

    module = binarize.apply(nn.Sequential(conv_bn(3, 16), Shuffled(), nn.Conv2d(16, 2, 1)), X)
    assert decisions(module)["1.conv2.0"].residual == "kept"
    assert float(module.get_submodule("1.conv2.0_link").gamma.detach().abs().max()) == 0


def test_stochastic_depth_inside_a_block_does_not_hide_it():
    """It reads whether the module trains, and that is no feature either."""
    from torchvision.ops import StochasticDepth

    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = conv_bn(16, 8, 1), conv_bn(8, 16, 1)
            self.drop = StochasticDepth(0.5, "row")

        def forward(self, x):
            return self.drop(self.conv2(self.conv1(x))) + x

    module = binarize.apply(nn.Sequential(conv_bn(3, 16), Skipping(), nn.Conv2d(16, 2, 1)), X)
    assert float(module.get_submodule("1.conv2.0_link").gamma.detach().abs().max()) == 0


def test_activations_do_not_blow_up_with_depth():
    """Residual and link together would double the signal per block: 2^12 here."""
    blocks = [BasicBlock(16, 16) for _ in range(12)]
    module = binarize.apply(nn.Sequential(conv_bn(3, 16), *blocks, nn.Conv2d(16, 2, 1)), X).train()
    values = []
    for name, m in module.named_modules():
        if isinstance(m, BinaryConv2d):
            m.register_forward_pre_hook(lambda _, x, name=name: values.append(float(x[0].std())))
    module(X)
    assert max(values) < 20 * values[0]


def test_identity_links_are_a_subset_of_elastic_ones():
    identity = Config().with_settings(["link.kind=identity"])
    el, bireal = binarize.apply(EveryConv(), X), binarize.apply(EveryConv(), X, config=identity)
    assert [d.action for d in el.report.decisions] == [d.action for d in bireal.report.decisions]
    assert {d.link for d in bireal.report.binarized} == {"identity", "none"}
    assert all(d.link == "identity" for d in bireal.report.binarized if decisions(el)[d.layer].link == d.link)


@pytest.mark.parametrize(
    "setting",
    ["link.position=post_bn", "link.gamma=channel", "link.pool=max", "link.kind=none", "conv.scale=none"],
)
def test_switches_change_the_function(setting):
    torch.manual_seed(0)
    model = randomized(EveryConv())
    plain = binarize.apply(model, X).eval()
    other = binarize.apply(model, X, config=settings(setting)).eval()
    if setting == "link.gamma=channel":
        assert {m.gamma.numel() for m in other.modules() if isinstance(m, ElasticLink)} != {1}
    else:
        assert not torch.allclose(plain(X), other(X))


def test_binarize_stem_and_keep_globs():
    module = binarize.apply(EveryConv(), X, config=settings("surgery.binarize_stem=true", "surgery.keep=basic.*"))
    found = decisions(module)
    assert found["stem.0"].binarized
    assert {d.rule for layer, d in found.items() if layer.startswith("basic.")} == {"keep"}


def test_pre_activation_nets_and_concatenation():
    module = binarize.apply(PreActivation(), X)
    assert {d.layer: d.rule for d in module.report.decisions} == {
        "stem": "stem",
        "conv1": "eligible",
        "conv2": "eligible",
        "last": "classifier",
    }
    assert decisions(module)["conv2"].residual == "kept"


def test_odd_but_legal_convs_stay_float_with_a_reason():
    model = nn.Sequential(
        conv_bn(3, 8),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(8, 8, 2, 2),
        nn.Conv2d(8, 4, 1),
    )
    rules = {d.layer: d.rule for d in binarize.apply(model, X).report.decisions}
    assert rules == {"0.0": "stem", "1": "eligible", "2": "transposed", "3": "classifier"}


def test_untraceable_parts_without_convs_become_leaves():
    class Moody(nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x

    module = binarize.apply(nn.Sequential(conv_bn(3, 8), Moody(), conv_bn(8, 8), nn.Conv2d(8, 2, 1)), X)
    assert len(module.report.binarized) == 1


def test_clear_refusals():
    with pytest.raises(UnsupportedModelError, match="no convolution"):
        binarize.apply(nn.Linear(3, 2), torch.randn(2, 3))
    with pytest.raises(UsageError, match="already binarized"):
        binarize.apply(binarize.apply(EveryConv(), X), X)
    with pytest.raises(UsageError, match="does not run on example inputs"):
        binarize.apply(EveryConv(), torch.randn(2, 7, 32, 32))
    with pytest.raises(UsageError, match=r"EveryConv.forward\(x\) cannot be called with 2 input") as caught:
        binarize.apply(EveryConv(), (X, X))
    assert "binarize.apply(model, (first, second" in caught.value.hint
    with pytest.raises(UsageError, match=r"near names.*basic"):
        binarize.apply(EveryConv(), X, config=settings("surgery.keep=basci.0.conv1"))
    model = EveryConv()
    model.odd.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(UnsupportedModelError, match="NaN") as caught:
        binarize.apply(model, X)
    assert caught.value.layer == "odd.weight"


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("resnet", "resnet18"),
        ("resnet", "resnet50"),
        ("mobilenet", "mobilenet_v2"),
        ("mobilenet", "mobilenet_v3_small"),
    ],
)
def test_golden_decisions(family, name, request):
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    report = binarize.inspect(model, (torch.zeros(2, 3, 64, 64),), config=Config())
    check_decisions(family, name, report, regenerate=request.config.getoption("--regen-goldens"))
