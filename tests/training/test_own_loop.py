"""What a training loop outside of `finetune` needs, by the loop that the documentation shows."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import binarize
from binarize.nn import BinaryConv
from binarize.surgery import unwrapped
from tests.models import conv_bn

PAGE = Path(__file__).parents[2] / "docs/recipes.md"


def net():
    torch.manual_seed(0)
    body = nn.Sequential(conv_bn(3, 16), conv_bn(16, 32, s=2), conv_bn(32, 32), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(32, 4)).eval()


def code():
    page = PAGE.read_text(encoding="utf-8")
    return page.split("## A training loop of your own")[1].split("```python\n")[1].split("```")[0]


def test_the_loop_of_the_documentation_learns_and_exports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 12, 12), torch.randint(4, (32,))
    steps = 60
    known = {"torch": torch, "F": F, "binarize": binarize, "model": net(), "images": images, "steps": steps}
    known["loader"] = [(images, labels)] * steps
    exec(compile(code(), str(PAGE), "exec"), known)
    assert known["loss"].detach() < 0.8 < float(F.cross_entropy(net()(images), labels))
    assert (tmp_path / "model.onnx").stat().st_size > 0  # export proved it equal


@pytest.mark.parametrize("recipe, decay", [("el", 0.0), ("real-to-bin", 0.1)])
def test_every_parameter_is_in_one_group_and_only_float_layers_decay(recipe, decay):
    module = binarize.apply(net(), torch.randn(2, 3, 12, 12), recipe)
    groups = binarize.parameter_groups(module, weight_decay=decay)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in module.parameters())
    latent = {id(m.weight): m.weight for m in module.modules() if isinstance(m, BinaryConv)}
    floats = {id(m.weight) for m in module.modules() if type(m) in (nn.Conv2d, nn.Linear)}
    for group in groups:
        members = {id(p) for p in group["params"]}
        assert group["weight_decay"] == (decay if members & floats else 0.0)
        if members & latent.keys():
            (weight,) = group["params"]
            share = group["lr"] / float(weight.detach().abs().mean())
            assert share == pytest.approx(module.report.config["training"]["weight_step"])


@pytest.mark.parametrize("recipe, sets", [("el", True), ("binarye", False)])
def test_calibration_sets_thresholds_where_the_recipe_has_them(recipe, sets):
    images = torch.randn(16, 3, 12, 12)
    model = net()
    module = binarize.calibrate(binarize.apply(model, images, recipe), model, [images[:8], images[8:]])
    thresholds = [m.threshold for m in module.modules() if isinstance(m, BinaryConv)]
    assert any(bool(t.abs().max() > 0.01) for t in thresholds) is sets


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.optim.swa_utils.AveragedModel, lambda m: torch.compile(m, backend="eager")],
    ids=["parallel", "averaged", "compiled"],
)
def test_a_wrapped_binary_module_is_the_one_inside(wrap, tmp_path):
    model, images = net(), torch.randn(8, 3, 12, 12)
    module = binarize.apply(model, images)
    wrapper = wrap(module)  # an average is of a copy
    assert binarize.calibrate(wrapper, model, images) is wrapper
    inner = unwrapped(wrapper)
    rates = [group["lr"] for group in binarize.parameter_groups(inner)]
    assert [group["lr"] for group in binarize.parameter_groups(wrapper)] == rates
    report = binarize.export(wrapper, tmp_path / "model")  # a wrapper's class is its own; that makes no parts of it
    assert report is inner.report and (tmp_path / "model").is_file()
    found = binarize.InferenceSession(tmp_path / "model").run(None, {"input": images.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), inner.eval()(images), rtol=1e-4, atol=1e-4)
