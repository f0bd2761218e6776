"""Bare weights find their torchvision architecture, or an error with the closest ones."""

from __future__ import annotations

import pytest
import torch
from torchvision import models

from binarize.errors import UnsupportedModelError
from binarize.loading import load_model
from binarize.loading.architecture import resolve, torchvision_names
from binarize.loading.build_index import _packed
from binarize.loading.recognise import INDEX_PATH, load_index, rank


def test_index_is_small_and_complete() -> None:
    assert INDEX_PATH.stat().st_size < 300_000
    index = load_index()
    assert len(index) == 109
    assert set(index) <= set(torchvision_names()) or set(torchvision_names()) <= set(index)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0"])
def test_index_agrees_with_the_installed_torchvision(name: str) -> None:
    assert f'"{_packed(name)}"' in INDEX_PATH.read_text()


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


def test_every_architecture_ranks_itself_first_without_its_head() -> None:
    index = load_index()
    for name in ["resnet50", "wide_resnet50_2", "vgg16_bn", "densenet121", "efficientnet_b0"]:
        outline = resolve(f"torchvision:{name}").outline(num_classes=11).state_dict()
        first, second = rank(outline)[:2]
        assert first.name == f"torchvision:{name}"
        assert first.score - second.score > 0.02
    assert index["resnet50"] != index["resnext50_32x4d"]


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
    with pytest.raises(UnsupportedModelError, match="nothing in torchvision resembles") as raised:
        load_model(saved(tiny.state_dict()))
    assert "--arch" in str(raised.value.hint)


def test_close_but_different_names_the_difference(saved) -> None:
    state = resolve("torchvision:resnet18").build(num_classes=10).state_dict()
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(UnsupportedModelError) as raised:
        load_model(saved(state))
    message = str(raised.value)
    assert "torchvision:resnet18 (0." in message and "torchvision:resnet34 (0." in message
    assert "conv1.weight [64, 3, 3, 3] against the model's [64, 3, 7, 7]" in message


def test_ambiguous_weights_ask_for_arch(saved, monkeypatch) -> None:
    """Two detectors differ only in input size; a monkeypatched index keeps the trials to these two."""
    twins = ("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn")
    index = {name: load_index()[name] for name in twins}
    assert index[twins[0]] == index[twins[1]]
    monkeypatch.setattr("binarize.loading.recognise.load_index", lambda: index)
    state = resolve(f"torchvision:{twins[0]}").build().state_dict()
    path = saved(state)
    with pytest.raises(UnsupportedModelError, match="fit 2 architectures equally") as raised:
        load_model(path)
    assert all(f"torchvision:{name} (1.00)" in str(raised.value) for name in twins)
    assert load_model(path, f"torchvision:{twins[1]}").arch_how == "given"


def test_wrong_architecture_for_the_file(saved) -> None:
    path = saved(resolve("torchvision:resnet18").build().state_dict())
    with pytest.raises(UnsupportedModelError, match="do not fit the architecture torchvision:resnet34") as raised:
        load_model(path, "torchvision:resnet34")
    assert "missing in the file (layer1.2.conv1.weight [64, 64, 3, 3]" in str(raised.value)
