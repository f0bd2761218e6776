"""Bare weights find their torchvision architecture, or an error with the closest ones."""

from __future__ import annotations

import sys

import pytest
import torch
from torchvision import models

from binarize.errors import EnvironmentProblem, UnsupportedModelError
from binarize.loading import load_model
from binarize.loading.architecture import resolve, torchvision_names
from binarize.loading.recognise import INDEX_PATH, Sketch, fingerprint, load_index, rank


def test_index_is_small_and_complete() -> None:
    assert INDEX_PATH.stat().st_size < 400_000
    names = {name for twins in load_index().values() for name in twins}
    known = {f"torchvision:{name}" for name in torchvision_names()}
    indexed = {name for name in names if name.startswith("torchvision:")}
    assert len(indexed) == 109
    assert indexed <= known or known <= indexed
    assert len(names - indexed) > 900


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:mobilenet_v3_small", "timm:dla34"])
def test_index_agrees_with_the_installed_libraries(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    sketch = Sketch.of(fingerprint(resolve(name).outline().state_dict()))
    assert name in load_index()[sketch]
    assert Sketch.unpacked(sketch.packed()) == sketch


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5"])
@pytest.mark.parametrize("classes", [1000, 11])
def test_recognised_with_any_head(saved, name: str, classes: int) -> None:
    original = resolve(f"torchvision:{name}").build(num_classes=classes)
    loaded = load_model(saved({f"module.{k}": v for k, v in original.state_dict().items()}))
    assert (loaded.arch, loaded.arch_how, loaded.num_classes) == (
        f"torchvision:{name}",
        "recognised",
        classes,
    )
    state, expected = loaded.module.state_dict(), original.state_dict()
    assert all(torch.equal(state[k], expected[k]) for k in expected)
    sure = "certain" if classes == 1000 else "head is of another size"
    assert any(f"Recognised torchvision:{name}" in note and sure in note for note in loaded.notes)


def test_architectures_rank_first_without_their_head() -> None:
    for name in ["resnet50", "wide_resnet50_2", "vgg16_bn", "densenet121", "efficientnet_b0", "fcn_resnet50"]:
        outline = resolve(f"torchvision:{name}").outline(num_classes=11).state_dict()
        assert f"torchvision:{name}" in [known for candidate in rank(outline)[:2] for known in candidate.names]


@pytest.mark.parametrize("name", ["nf_resnet26", "regnety_002", "convnext_atto", "mobilenetv4_conv_small"])
@pytest.mark.parametrize("classes", [1000, 11])
def test_timm_architectures_are_recognised(saved, name: str, classes: int) -> None:
    pytest.importorskip("timm")
    original = resolve(f"timm:{name}").build(num_classes=classes)
    loaded = load_model(saved(original.state_dict()))
    assert (loaded.arch, loaded.num_classes) == (f"timm:{name}", classes)
    assert all(torch.equal(value, loaded.module.state_dict()[key]) for key, value in original.state_dict().items())


def test_timm_models_that_differ_only_in_what_weights_do_not_show_need_arch(saved) -> None:
    pytest.importorskip("timm")
    path = saved(resolve("timm:tf_mobilenetv3_small_100").build(num_classes=5).state_dict())
    with pytest.raises(UnsupportedModelError, match="fit 2 architectures equally") as raised:
        load_model(path)
    assert "timm:mobilenetv3_small_100, timm:tf_mobilenetv3_small_100" in str(raised.value)
    assert load_model(path, "timm:tf_mobilenetv3_small_100").num_classes == 5


def test_torchvision_comes_before_its_twins_in_timm(saved) -> None:
    loaded = load_model(saved(resolve("torchvision:resnet50").build().state_dict()))
    assert loaded.arch == "torchvision:resnet50"
    assert any("timm:resnet50, timm:resnetaa50" in note for note in loaded.notes)


def test_timm_weights_without_timm_say_what_to_install(saved, monkeypatch) -> None:
    pytest.importorskip("timm")
    path = saved(resolve("timm:nf_resnet26").build().state_dict())
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EnvironmentProblem, match=r"look like timm:nf_resnet26 \(1\.00\), and timm is not") as raised:
        load_model(path)
    assert "zoo" in str(raised.value.hint)


def test_auxiliary_heads_may_be_absent(saved) -> None:
    original = models.googlenet(weights=None, init_weights=False, aux_logits=False, num_classes=5)
    loaded = load_model(saved(original.state_dict()))
    assert (loaded.arch, loaded.num_classes) == ("torchvision:googlenet", 5)
    assert any("without auxiliary heads" in note for note in loaded.notes)


def test_old_densenet_names(saved) -> None:
    original = resolve("torchvision:densenet121").build()
    old = {}
    for key, value in original.state_dict().items():
        for part in ("norm", "conv"):
            for digit in "12":
                if "denselayer" in key:
                    key = key.replace(f".{part}{digit}.", f".{part}.{digit}.")
        old[key] = value
    assert old.keys() != original.state_dict().keys()
    loaded = load_model(saved(old))
    assert loaded.arch == "torchvision:densenet121"
    assert any("old names" in note for note in loaded.notes)


def test_weights_like_nothing_known(tiny, saved) -> None:
    with pytest.raises(UnsupportedModelError, match="nothing in torchvision or timm resembles") as raised:
        load_model(saved(tiny.state_dict()))
    assert "--arch" in str(raised.value.hint)


def test_close_but_different_names_the_difference(saved) -> None:
    state = resolve("torchvision:resnet18").build(num_classes=10).state_dict()
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(UnsupportedModelError) as raised:
        load_model(saved(state))
    message = str(raised.value)
    assert "closest are" in message and "torchvision:resnet18 (0." in message
    assert "conv1.weight [64, 3, 3, 3] against the model's [64, 3, 7, 7]" in message


def test_ambiguous_weights_ask_for_arch(saved) -> None:
    """Two detectors differ only in the size to which they scale their input."""
    twins = ("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_mobilenet_v3_large_fpn")
    path = saved(resolve(f"torchvision:{twins[0]}").build().state_dict())
    with pytest.raises(UnsupportedModelError, match="fit 2 architectures equally") as raised:
        load_model(path)
    assert all(f"torchvision:{name}" in str(raised.value) for name in twins)
    assert load_model(path, f"torchvision:{twins[1]}").arch_how == "given"


def test_wrong_architecture_for_the_file(saved) -> None:
    path = saved(resolve("torchvision:resnet18").build().state_dict())
    with pytest.raises(UnsupportedModelError, match="do not fit the architecture torchvision:resnet34") as raised:
        load_model(path, "torchvision:resnet34")
    assert "missing in the file (layer1.2.conv1.weight [64, 64, 3, 3]" in str(raised.value)
