"""Every recipe applies, trains, exports and runs, and is what it says it is."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import binarize
from binarize import api
from binarize.nn import BinaryConv2d, ElasticLink, RPReLU
from binarize.recipes import TABLE1_NETS, all_recipes
from binarize.training import calibrate
from tests.models import BasicBlock, Bottleneck, conv_bn, randomized
from tests.training.test_finetune import SIZE, images

RECIPES = list(all_recipes())
ELASTIC = {"el", "el-dagger", "el-reactnet"}
QUICK = (
    "training.batch_size=32",
    "training.mean=0.5",
    "training.std=0.5",
    "training.augment=none",
    "training.calibration_images=64",
    "training.holdout=0",
    "training.epochs=3",
)


def net():
    """A projection, an identity block, a bottleneck, a depthwise-separable pair, channels that shrink."""
    torch.manual_seed(0)
    return nn.Sequential(
        conv_bn(1, 8),
        BasicBlock(8, 8),
        BasicBlock(8, 16, 2),
        Bottleneck(16, 8),
        conv_bn(16, 16, g=16),
        conv_bn(16, 32, 1),
        conv_bn(32, 12, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


def applied(name, *values, model=None):
    return binarize.apply(model or net(), torch.zeros(2, *SIZE), config=api.resolve_config(name, None, values))


def convs(module):
    return {n: m for n, m in module.named_modules() if isinstance(m, BinaryConv2d)}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_exports_and_runs(name, tmp_path):
    model = net()
    module = applied(name, *QUICK, "training.stages.binary.search_every=1", model=model)
    weights = {n: c.weight.detach().clone() for n, c in convs(module).items()}
    binarize.finetune(module, model, images(128), val_data=images(64, seed=1))
    history = module.report.results["training"]["history"]
    assert list(dict.fromkeys(h["stage"] for h in history)) == [
        s.name for s in all_recipes()[name].config.training.stages if s.share > 0
    ]
    assert all(np.isfinite(h["loss"]) for h in history)
    assert all(not torch.equal(c.weight, weights[n]) for n, c in convs(module).items())
    check_search(name, module, history[-1])
    for file in ("trained.onnx", "randomized.onnx"):  # as training left it; then with no parameter at its default
        path = tmp_path / file
        report = binarize.export(module, path, torch.randn(3, *SIZE))
        assert report.results["verification"]["nodes"] >= len(report.binarized)
        x = torch.randn(32, *SIZE)
        with torch.no_grad():
            trained = module.eval()(x).numpy()
        found = binarize.InferenceSession(path).run(None, {"input": x.numpy()})[0]
        differences = abs(found - trained).max(1) / abs(trained).max()
        assert found.shape == (32, 4) and (differences < 1e-4).mean() > 0.8  # rounding may flip an image's sign
        randomized(module)


def check_search(name, module, last):
    """A recipe that searches has adopted something, and CI-Net's edges change what the net gives."""
    searches = any(stage.search != "none" for stage in all_recipes()[name].config.training.stages)
    assert searches == ("adopted" in last) and (not searches or last["adopted"] > 0)
    edges = [conv.interaction.sign for conv in convs(module).values() if conv.interaction is not None]
    assert any(sign.any() for sign in edges) == (name == "ci-net")
    if name == "ci-net":
        x = images(64).images / 127.5 - 1
        bare = copy.deepcopy(module).eval()
        for conv in convs(bare).values():
            conv.interaction.sign.zero_()
        with torch.no_grad():
            assert not torch.allclose(bare(x), module.eval()(x))


@pytest.mark.parametrize("name", [n for n in RECIPES if n not in ELASTIC])
def test_elastic_link_is_a_part_that_any_recipe_can_switch_on(name):
    module = applied(name, "link=elastic")
    assert all(d.link != "none" for d in module.report.binarized)
    assert "go without" not in module.report.summary()
    module(torch.randn(4, *SIZE)).square().sum().backward()
    assert all(c.weight.grad.abs().sum() > 0 for c in convs(module).values())
    gammas = {n: m.gamma for n, m in module.named_modules() if isinstance(m, ElasticLink)}
    assert len(gammas) == len(convs(module))
    assert all(gamma.grad.abs().sum() > 0 for gamma in gammas.values())  # learned, as the paper's are


def test_a_closing_link_without_weight_is_none_and_the_report_says_so():
    """Of the kind alone: the recipe's links have no weight."""
    module = applied("bireal", "link.kind=elastic", "link.residual=keep")
    bare = [d.layer for d in module.report.binarized if d.link == "none"]
    assert bare == ["1.conv2", "3.body.6"]
    assert (
        "a weightless link that would start at 0 is none (link.gamma=one): 2 go without one" in module.report.summary()
    )


def test_links_and_projections_are_where_the_papers_have_them():
    def links(name):
        return {d.layer: d.link for d in applied(name).report.decisions if d.link != "none"}

    assert not links("xnor") and not links("tbn") and not links("abcnet")
    assert set(links("bireal")) == {"1.conv1", "1.conv2", "2.conv2", "3.body.3", "4.0"}
    assert set(links("reactnet")) == {*links("bireal"), "3.body.6", "5.0"}  # 8 -> 16 and 16 -> 32 duplicate
    assert len(links("el")) == len(convs(applied("el")))
    for name in RECIPES:
        kept = {d.layer: d.rule for d in applied(name).report.kept}
        assert ("2.down.0" in kept) == (name not in ELASTIC), name


def test_bireal_block_with_a_projection_is_two_shortcuts_in_a_row():
    """`f = BN(conv1 x) + BN(projection x); y = BN(conv2 f) + f`, by hand."""
    module = randomized(
        applied("bireal", model=nn.Sequential(conv_bn(1, 8), BasicBlock(8, 16, 2), nn.Flatten(), nn.Linear(256, 4)))
    ).eval()
    sub = module.get_submodule
    x = torch.randn(3, *SIZE)
    with torch.no_grad():
        h = sub("0.1")(sub("0.0")(x))
        f = sub("1.bn1")(sub("1.conv1")(h)) + sub("1.down.1")(sub("1.down.0")(h))
        y = torch.relu(sub("1.bn2")(sub("1.conv2")(f)) + sub("1.conv2_link")(f))
        torch.testing.assert_close(module(x), sub("3")(y.flatten(1)))
    assert module.report.decisions[1].residual == "projection"


def test_published_shortcuts_have_no_weight_and_published_signs_no_threshold():
    for name in ("bireal", "binarye", "real-to-bin", "gbcn", "mobinet"):
        module = applied(name)
        links = [m for m in module.modules() if isinstance(m, ElasticLink)]
        assert links and not any(link.gamma.requires_grad for link in links)
        assert all(torch.equal(link.gamma, torch.ones_like(link.gamma)) for link in links)
        learns = name == "real-to-bin"  # for the batch norm before the sign
        assert all(c.threshold.requires_grad is learns for c in convs(module).values())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bireal", None), ("xnor", None), ("ci-net", nn.Hardtanh), ("real-to-bin", RPReLU), ("reactnet", RPReLU)],
)
def test_what_stands_before_the_signs(name, kind):
    module = applied(name)
    found = [m for m in module.modules() if isinstance(m, (nn.ReLU, nn.Hardtanh, RPReLU))]
    assert sum(isinstance(m, nn.ReLU) for m in found) == 1  # the last one feeds the pooling, not a sign
    assert kind is None or sum(isinstance(m, kind) for m in found) >= 8
    if kind is None:
        assert len(found) == 1
    if name == "real-to-bin":
        assert all(m.shift_in is None for m in found if isinstance(m, RPReLU))


def test_mobinet_widens_depthwise_convs_and_keeps_their_weights():
    model = net()
    module = applied("mobinet", model=model)
    conv, old = module.get_submodule("4.0"), model[4][0]
    assert conv.groups == 4 and conv.weight.shape == (16, 4, 3, 3)
    for channel in range(16):
        assert torch.equal(conv.weight[channel, channel % 4], old.weight[channel, 0])
    others = conv.weight.detach().abs().mean() - old.weight.detach().abs().mean() / 4
    assert 0 < others < 0.2 * old.weight.detach().abs().mean()
    decision = next(d for d in module.report.decisions if d.layer == "4.0")
    assert (decision.kind, decision.groups, decision.weight_bytes) == ("grouped", 4, 16 * 4 * 9 * 4)
    ten = nn.Sequential(conv_bn(1, 10), conv_bn(10, 10, g=10), nn.Flatten(), nn.Linear(640, 2))
    module = applied("mobinet", model=ten)
    assert module.get_submodule("1.0").groups == 5  # 10 is no multiple of 4 or 3
    assert "outputs see 2 channels, not 4, which does not divide all of them: 1: 1.0" in module.report.summary()
    assert "outputs see" not in applied("mobinet").report.summary()


@pytest.mark.parametrize("threshold", ["none", "median"])
def test_calibration_spreads_abcnets_bases_over_the_deviation_of_what_each_conv_meets(threshold):
    model = net()
    module = applied("abcnet", f"conv.threshold={threshold}", model=model)
    inputs = {name: [] for name in convs(module)}
    for name, conv in convs(module).items():
        conv.register_forward_pre_hook(lambda _, args, name=name: inputs[name].append(args[0].numpy().astype(float)))
    calibrate(module, model, [scale * torch.randn(8, *SIZE) for scale in (1.0, 3.0, 0.5)], threshold=threshold)
    for name, conv in convs(module).items():
        medians, deviation = [], 0.0
        for x in inputs[name]:
            ordered = np.sort(np.moveaxis(x, 1, 0).reshape(x.shape[1], -1), axis=1)
            medians.append(ordered[:, (ordered.shape[1] - 1) // 2])  # the lower one, as torch has it
            centre = np.mean(medians, axis=0) if threshold == "median" else np.zeros(x.shape[1])
            z = x - centre[:, None, None]
            deviation = max(deviation, (((z - z.mean()) ** 2).sum() / (z.size - 1)) ** 0.5)
        assert len(medians) == 3
        np.testing.assert_allclose(conv.threshold.detach().numpy(), centre, rtol=1e-4, atol=1e-5)
        part = conv.binarize_input  # three bases: thresholds a deviation apart
        np.testing.assert_allclose(0.5 - part.shift.detach().numpy(), deviation * np.array([-1, 0, 1]), atol=1e-4)
        np.testing.assert_allclose(part.factor.detach().numpy(), deviation / 2, rtol=1e-4)


def test_conversion_is_the_same_in_every_process():
    torch.manual_seed(1)
    first = applied("el-dagger").state_dict()
    torch.manual_seed(2)
    assert all(torch.equal(v, first[k]) for k, v in applied("el-dagger").state_dict().items())


PARTS = {
    "xnor": ("sign clip 1", "none", "centred exact", "mean_abs", "no gate", "none"),
    "abcnet": ("bases", "none", "bases", "mean_abs", "no gate", "none"),
    "tbn": ("ternary approx", "none", "centred exact", "mean_abs", "no gate", "none"),
    "bireal": ("sign approx", "none", "sign clip 1", "mean_abs", "no gate", "identity"),
    "binarye": ("sign clip 1.3", "none", "sign magnitude 1.3", "none", "no gate", "identity"),
    "ci-net": ("sign clip 1", "none", "sign magnitude 1", "none", "no gate", "none"),
    "xnor++": ("sign clip 1", "none", "sign magnitude 1", "learned", "no gate", "none"),
    "gbcn": ("sign approx", "none", "sign clip 1", "mean_abs", "no gate", "identity"),
    "mobinet": ("sign approx", "none", "sign magnitude 1", "mean_abs", "no gate", "pooled"),
    "el": ("sign approx", "median", "sign magnitude 1", "mean_abs", "no gate", "elastic"),
    "real-to-bin": ("sign clip 1", "median", "sign magnitude 1", "none", "gate", "identity"),
    "el-dagger": ("sign approx", "median", "sign magnitude 1", "mean_abs", "gate", "elastic"),
    "reactnet": ("sign approx", "zero", "sign clip 1", "mean_abs", "no gate", "expand"),
    "el-reactnet": ("sign approx", "median", "sign magnitude 1", "mean_abs", "no gate", "elastic"),
}
"""Inputs with their gradient, thresholds, weights with theirs, scale, gate and link, as the equations have them."""
ACTIVATIONS = {
    **dict.fromkeys(("el", "el-dagger", "reactnet", "el-reactnet"), "rprelu"),
    **dict.fromkeys(("xnor++", "real-to-bin"), "prelu"),
    "ci-net": "hardtanh",
}
ONE_STAGE = [(1, "binary", "binary", "float", 1, 1, 0, "none")]
TWO_STEPS = [(128, "binary", weights, "float", 0, 1, 0, "none") for weights in ("float", "binary")]
LADDER = [("tanh", "float", "float", 1, 3, 30), ("binary", "float", "previous", 1, 3, 30)]
LAST = ("binary", "binary", "previous", 1, 0.8, 0, "none")
TRAINING = {
    "real-to-bin": [*((75, *rung, "none") for rung in LADDER), (100, *LAST)],
    "el-dagger": [*((0, *rung, "none") for rung in LADDER), (100, *LAST)],
    "reactnet": TWO_STEPS,
    "el-reactnet": TWO_STEPS,
    "gbcn": [(1, "binary", "binary", "float", 1, 1, 0, "genetic")],
    "ci-net": [(1, "binary", "binary", "float", 1, 1, 0, "interactions")],
}
"""Shares, what is binary, teachers, the losses' weights and the search, where it is not one stage of both losses."""


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_papers_parts(name):
    config = all_recipes()[name].config
    conv, gate = config.conv, "gate" if config.conv.gate else "no gate"

    def gradient(kind):  # the bound counts where there is one; ABC-Net's bases bring their own gradients
        return kind if kind in ("approx", "identity", "exact") else f"{kind} {conv.clip:g}"

    inputs = (conv.activations, *([] if conv.activations == "bases" else [gradient(conv.activation_gradient)]))
    weights = (conv.weights, *([] if conv.weights == "bases" else [gradient(conv.weight_gradient)]))
    found = (" ".join(inputs), conv.threshold, " ".join(weights), conv.scale, gate, config.link.kind)
    assert found == PARTS[name]
    assert config.surgery.activation == ACTIVATIONS.get(name, "none")
    assert conv.interactions == (16 if name == "ci-net" else 0)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_papers_training(name):
    found = [
        (s.share, s.activations, s.weights, s.teacher, s.cross_entropy, s.distillation, s.attention, s.search)
        for s in all_recipes()[name].config.training.stages
    ]
    assert found == TRAINING.get(name, ONE_STAGE)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is(name):
    recipe = all_recipes()[name]
    assert recipe.name == name == recipe.config.recipe
    assert recipe.summary and recipe.source and recipe.equations and recipe.cost
    equations = " ".join(recipe.equations)
    assert "y = " in equations and ("d sign" in equations or "dL/dW" in equations) and " as in " not in equations
    assert ("float projections" in recipe.cost) == (recipe.config.surgery.keep == ("rule:projection",))
    assert len(recipe.table1) == len(TABLE1_NETS)
    assert all(cell in ("-", "NC") or 40 < float(cell) < 75 for cell in recipe.table1)


def test_the_report_says_where_a_recipe_has_no_answer():
    assert (
        "no identity link fits: 3 go without one: 3.body.0, 3.body.6, 5.0"
        in applied("bireal", model=net()[:6].append(nn.Flatten()).append(nn.Linear(512, 2))).report.summary()
    )
    assert "link fits" not in applied("el").report.summary()
    assert "link fits" not in applied("xnor").report.summary()
    assert "fix the size of the images" in applied("xnor++", "conv.scale=spatial").report.summary()
    found = applied("xnor", "conv.box_scale=true").report.summary()
    assert "weights of one input channel stay uncentred: 1: 4.0" in found
    assert "K is left out of grouped convs: 1: 4.0" in found
    hidden = "a link before the batch norm is small"
    assert hidden in applied("binarye", "link.position=pre_bn").report.summary()
    assert hidden not in applied("binarye").report.summary() + applied("el", "link.position=pre_bn").report.summary()


def test_the_report_names_signs_that_nothing_balances():
    def pooled(*stem):
        head = (BasicBlock(8, 8), nn.Conv2d(8, 12, 1), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(12, 12, 1))
        return nn.Sequential(*stem, *head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))

    def named(recipe, *values, model):
        decisions = applied(recipe, *values, model=model).report.binarized
        return [d.layer for d in decisions if any("balances the bits" in text for text in d.departures)]

    normed, bare = conv_bn(1, 8), nn.Conv2d(1, 8, 3, 1, 1)
    for recipe in ("bireal", "xnor", "abcnet", "ci-net", "mobinet"):
        assert named(recipe, model=pooled(normed, nn.MaxPool2d(2))) == ["2.conv1", "6"]  # after the stem's pooling
        assert named(recipe, model=pooled(normed, nn.AvgPool2d(2))) == ["6"]
        assert named(recipe, model=pooled(bare, nn.ReLU())) == ["2.conv1", "6"]  # a stem without a norm
    for recipe in ("el", "el-dagger", "real-to-bin", "reactnet", "el-reactnet"):  # thresholds are learned
        assert not named(recipe, model=pooled(normed, nn.MaxPool2d(2)))
    assert not named("bireal", "conv.threshold=median", model=pooled(normed, nn.MaxPool2d(2)))
    assert not named("bireal", model=net())


@pytest.mark.parametrize("name", RECIPES)
def test_the_page_of_recipes_has_it(name):
    recipe = all_recipes()[name]
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    assert f"| `{name}` | {recipe.summary} | " + " | ".join(recipe.table1) + " |" in page
