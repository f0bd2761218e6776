"""What models and the files around their weights say of preprocessing, and what is not believed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loading_helpers import TinyNet
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models, transforms
from torchvision.transforms import InterpolationMode, v2

from binarize.loading import load_model, preprocessing, stated_by
from binarize.preprocessing import Preprocessing

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CFG = {
    "architecture": "tiny",
    "tag": "a1_in1k",
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.2, 0.2),
    "input_size": (3, 96, 96),
    "crop_pct": 0.95,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "num_classes": 4,
}
KNOWN = {"mean": CFG["mean"], "std": CFG["std"], "size": (96, 96), "crop_pct": 0.95, "interpolation": "bicubic"}


def values_of(found: Preprocessing) -> dict[str, Any]:
    names = ("mean", "std", "size", "crop_pct", "interpolation")
    return {name: getattr(found, name) for name in names if getattr(found, name) is not None}


# --- modules


@dataclasses.dataclass
class Cfg:
    """As timm keeps a configuration before it is one of a model."""

    mean: Any = CFG["mean"]
    std: Any = CFG["std"]
    input_size: Any = CFG["input_size"]
    architecture: str = "tiny"
    tag: Any = None


@pytest.mark.parametrize("name", ["pretrained_cfg", "default_cfg"])
def test_a_model_with_a_configuration_says_it_itself(tiny, name: str) -> None:
    setattr(tiny, name, CFG)
    found = stated_by(tiny)
    assert values_of(found) == KNOWN and found.hints == ()
    assert set(found.sources.values()) == {"pretrained_cfg of tiny.a1_in1k"}
    setattr(tiny, name, Cfg())
    assert values_of(stated_by(tiny)) == {name: KNOWN[name] for name in ("mean", "std", "size")}
    for odd in (None, {}, 7, "mean", Cfg):
        setattr(tiny, name, odd)
        assert stated_by(tiny) == Preprocessing()


def test_timms_models_say_it() -> None:
    timm = pytest.importorskip("timm")
    found = stated_by(timm.create_model("inception_v3"))
    assert values_of(found) == {
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "size": (299, 299),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
    }
    assert set(found.sources.values()) == {"pretrained_cfg of inception_v3.tv_in1k"}


class Scale(nn.Module):
    """Normalises, by default; with buffers as many write it."""

    def __init__(self, mean: Any = 0.4, std: Any = (0.2, 0.3, 0.4), *, works: bool = True) -> None:
        super().__init__()
        self.works = works
        self.register_buffer("mean", torch.as_tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std if self.works else x


class Behind(nn.Module):
    """A net with a layer somewhere inside."""

    def __init__(self, layer: nn.Module, *, halve: bool = False) -> None:
        super().__init__()
        self.net, self.layer, self.halve = TinyNet(), layer, halve

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.layer(x / 2 if self.halve else x))


@pytest.mark.parametrize(
    "layer", [Scale(), Scale(0.5, 0.5), transforms.Normalize(*IMAGENET), v2.Normalize([0.1] * 3, [1.0] * 3)]
)
def test_a_model_that_normalises_itself_wants_pixels_as_they_are(layer: nn.Module) -> None:
    model = Behind(layer).train()
    found = stated_by(model)
    assert values_of(found) == {"mean": (0.0,), "std": (1.0,)} and found.hints == ()
    assert found.sources["mean"] == "its layer 'layer', which normalises"
    assert model.training and not layer._forward_hooks
    assert stated_by(nn.Sequential(layer, TinyNet())).sources["mean"] == "its layer '0', which normalises"


@pytest.mark.parametrize(
    "model",
    [Behind(Scale(), halve=True), Behind(Scale(works=False)), nn.Sequential(TinyNet(), nn.Linear(4, 3), Scale())],
)
def test_a_layer_that_may_normalise_something_else_is_a_hint(model: nn.Module) -> None:
    found = stated_by(model)
    assert values_of(found) == {}
    assert "has a mean and std of its own" in found.hints[0] and "training.mean=[0] " in found.hints[0]


@pytest.mark.parametrize(
    "layer", [Scale(0.0, 1.0, works=False), Scale(123.0, 58.0), Scale([0.5] * 4, 1.0), nn.Identity()]
)
def test_other_layers_are_not_taken_for_one(layer: nn.Module) -> None:
    assert stated_by(Behind(layer)) == Preprocessing()


def test_what_a_part_says_is_a_hint() -> None:
    model = Behind(nn.Identity())
    model.net.pretrained_cfg = CFG
    found = stated_by(model)
    assert values_of(found) == {}
    assert "'net'" in found.hints[0] and "training.mean=[0.5,0.4,0.3]" in found.hints[0]
    model.net.pretrained_cfg = {"mean": IMAGENET[0], "std": IMAGENET[1]}
    assert stated_by(model) == Preprocessing(), "which is the default anyway"


def test_torchvisions_inception_that_scales_its_input_takes_imagenets() -> None:
    model = models.googlenet(init_weights=False, transform_input=True, aux_logits=False)
    assert values_of(stated_by(model)) == {"mean": IMAGENET[0], "std": IMAGENET[1]}
    model.transform_input = False
    assert stated_by(model) == Preprocessing()


# --- files beside the weights


@pytest.fixture
def folder(tmp_path: Path, tiny: TinyNet, tiny_file: Path) -> Callable[..., nn.Module]:
    """Load tiny weights with JSON beside them."""

    def load(name: str = "model.safetensors", **files: Any) -> nn.Module:
        where = tmp_path / "hub"
        where.mkdir(exist_ok=True)
        for key, content in files.items():
            (where / f"{key}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        save_file(tiny.state_dict(), where / name)
        return load_model(where / name, f"{tiny_file}:tiny").module

    return load


PROCESSOR = {
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.2, 0.2],
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_resize": True,
    "resample": 3,
    "size": {"shortest_edge": 120},
    "do_center_crop": True,
    "crop_size": {"height": 96, "width": 96},
}


WHOLE = {"do_center_crop": False}


def test_timms_config_beside_the_weights(folder) -> None:
    found = stated_by(folder(config={"architecture": "tiny", "pretrained_cfg": CFG}))
    assert values_of(found) == KNOWN and set(found.sources.values()) == {"config.json"} and found.hints == ()
    assert values_of(stated_by(folder(config=CFG))) == KNOWN, "as old ones are"
    assert stated_by(folder(config={"model_type": "resnet", "num_channels": 3})) == Preprocessing()
    assert stated_by(folder(config={"mean": 1, "std": 2})) == Preprocessing()


@pytest.mark.parametrize(
    "changes, expected, hint",
    [
        ({}, {"size": (96, 96), "crop_pct": 0.8, "interpolation": "bicubic"}, ""),
        ({"resample": 2, "crop_size": 96, "size": 120}, {"size": (96, 96), "crop_pct": 0.8}, ""),
        ({"do_center_crop": False, "crop_size": None, "crop_pct": 0.9}, {"size": (120, 120), "crop_pct": 0.9}, ""),
        (
            WHOLE | {"crop_pct": 0.9, "size": {"shortest_edge": 384}},
            {"size": (384, 384), "crop_pct": 1.0},
            "proportions",
        ),
        (WHOLE | {"size": {"height": 64, "width": 80}}, {"size": (64, 80), "crop_pct": 1.0}, "proportions"),
        ({"do_resize": False}, {"size": (96, 96), "crop_pct": None}, ""),
        ({"do_normalize": False}, {"mean": (0.0,), "std": (1.0,)}, ""),
        ({"rescale_factor": 0.00784}, {"mean": None, "std": None}, "another range"),
        ({"do_rescale": False}, {"mean": None, "std": None}, "another range"),
        ({"image_mean": [123, 116, 103]}, {"mean": None, "std": None}, "mean [123, 116, 103]"),
        ({"size": {"shortest_edge": 50}}, {"size": (96, 96), "crop_pct": None}, "crop_pct 1.92"),
        ({"resample": 1}, {"interpolation": None}, "number 1"),
        ({"size": "large", "crop_size": [1], "do_center_crop": 3}, {"size": None, "crop_pct": None}, ""),
    ],
)
def test_an_image_processors_settings(folder, changes: dict[str, Any], expected: dict[str, Any], hint: str) -> None:
    found = stated_by(folder(preprocessor_config=PROCESSOR | changes))
    assert {name: getattr(found, name) for name in expected} == expected
    if "mean" not in expected:
        assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert set(found.sources.values()) <= {"preprocessor_config.json"}
    assert hint in " ".join(found.hints) and bool(found.hints) == bool(hint)


def test_channels_in_another_order_are_said(folder) -> None:
    found = stated_by(folder(preprocessor_config=PROCESSOR | {"do_flip_channel_order": True}))
    assert any("BGR" in hint for hint in found.hints)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "null", "\x00", "[" * 100_000, '{"image_mean": 1' + "0" * 5000 + "}", "\u001b[31m"]
)
def test_a_damaged_file_is_left_aside_with_a_word(folder, content: str) -> None:
    found = stated_by(folder(preprocessor_config=content))
    assert values_of(found) == {} and "preprocessor_config.json beside the weights" in found.hints[0]
    assert "\x1b" not in found.hints[0]


@pytest.mark.parametrize("file", ["preprocessor_config", "config"])
def test_hostile_values_are_left_aside(folder, file: str) -> None:
    names = [*PROCESSOR, *CFG, "pretrained_cfg", "crop_mode"]
    for odd in (float("nan"), float("inf"), 10**30, -1, "x" * 10_000, [], [[]], {}, {"a": {}}, True, ["\x1b[31m"]):
        content = (PROCESSOR if file == "preprocessor_config" else CFG) | dict.fromkeys(names, odd)
        found = stated_by(folder(**{file: content}))
        assert set(values_of(found)) <= {"interpolation"} and all(len(hint) < 300 for hint in found.hints)
        assert all("\x1b" not in hint for hint in found.hints)


def test_a_file_too_large_and_one_that_is_none(folder, tmp_path: Path) -> None:
    found = stated_by(folder(preprocessor_config=" " * (preprocessing._MAX_JSON_BYTES + 1)))
    assert "more than 4 MB" in found.hints[0]
    if sys.platform != "win32":
        (tmp_path / "hub" / "preprocessor_config.json").unlink()
        os.mkfifo(tmp_path / "hub" / "preprocessor_config.json")
        assert stated_by(folder()) == Preprocessing()


def test_beside_weights_of_any_other_name_it_is_a_hint(folder) -> None:
    found = stated_by(folder("epoch7.safetensors", preprocessor_config=PROCESSOR))
    assert values_of(found) == {}
    assert "may be about other weights" in found.hints[0] and "training.mean=[0.5,0.4,0.3]" in found.hints[0]


# --- weights that a library released


def test_a_builders_configuration_is_not_that_of_the_weights(tiny, saved, tmp_path: Path) -> None:
    (tmp_path / "built.py").write_text(
        "from loading_helpers import TinyNet\n\ndef built():\n    model = TinyNet()\n"
        f"    model.pretrained_cfg = {CFG!r}\n    model.default_cfg = model.pretrained_cfg\n    return model\n"
    )
    module = load_model(saved(tiny.state_dict()), f"{tmp_path / 'built.py'}:built").module
    assert stated_by(module) == Preprocessing()
    assert module.pretrained_cfg["num_classes"] == 4, "what is not about images stays"
    (tmp_path / "old.py").write_text(
        "from loading_helpers import TinyNet\n\ndef built():\n    model = TinyNet()\n"
        "    model.default_cfg = {'mean': 0.5, 'std': 0.5}\n    return model\n"
    )
    assert stated_by(load_model(saved(tiny.state_dict()), f"{tmp_path / 'old.py'}:built").module) == Preprocessing()


def fake_weights(**weights: Any) -> Any:
    """As `torchvision.models.get_model_weights` gives them, but for their presets' other values."""

    class Weight(SimpleNamespace):
        def __str__(self) -> str:
            return f"Fake_Weights.{self.name}"

    class ImageClassification(SimpleNamespace):
        pass

    made = []
    for name, (digest, changes) in weights.items():
        preset = {"mean": IMAGENET[0], "std": IMAGENET[1], "crop_size": [224], "resize_size": [232]}
        preset |= {"interpolation": InterpolationMode.BILINEAR, **changes}
        transform = ImageClassification(**preset)
        made.append(Weight(name=name, url=f"https://x/net-{digest}.pth", transforms=lambda t=transform: t))

    class Weights(list):
        DEFAULT = made[-1]

    return lambda _: Weights(made)


@pytest.fixture
def resnet(saved) -> Path:
    torch.manual_seed(0)
    return saved(models.resnet18().state_dict(), "anything.pth")


def test_a_released_file_is_known_by_its_hash_whatever_its_name(resnet: Path, monkeypatch) -> None:
    digest = hashlib.sha256(resnet.read_bytes()).hexdigest()[:8]
    large = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_size": [384], "resize_size": [384]}
    monkeypatch.setattr(models, "get_model_weights", fake_weights(V1=(digest, large), V2=("00000000", {})))
    for arch in (None, "torchvision:resnet18"):
        found = stated_by(load_model(resnet, arch).module)
        assert values_of(found) == {
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
            "size": (384, 384),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
        }
        assert set(found.sources.values()) == {"torchvision's Fake_Weights.V1"} and found.hints == ()


def test_weights_of_unknown_origin_get_a_hint_where_the_library_differs(resnet: Path, monkeypatch) -> None:
    named = resnet.rename(resnet.with_name("net-12345678.pth"))
    other = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_size": [300]}
    monkeypatch.setattr(models, "get_model_weights", fake_weights(V1=("12345678", {}), V2=("87654321", other)))
    found = stated_by(load_model(named).module)
    assert values_of(found) == {}, "a name can be given to any file"
    (hint,) = found.hints
    assert "Fake_Weights.V2" in hint and "--input-size 3,300,300 --set training.mean=[0.5,0.5,0.5]" in hint
    monkeypatch.setattr(models, "get_model_weights", fake_weights(V1=("12345678", {})))
    assert stated_by(load_model(named).module) == Preprocessing(), "nothing to say: it is as the defaults"


def test_torchvisions_own_weights_are_all_understood() -> None:
    module = SimpleNamespace()
    seen = [
        r
        for n in ("resnet50", "efficientnet_v2_l", "regnet_y_16gf")
        for r in preprocessing._releases(f"torchvision:{n}", module)
    ]
    assert len(seen) == 7 and all(len(release.digest) >= 8 for release in seen)
    assert all(set(values_of(release.preprocessing)) == set(KNOWN) for release in seen)
    assert seen[0].name == "ResNet50_Weights.IMAGENET1K_V2", "the default first"
    assert seen[0].preprocessing.crop_pct == 224 / 232
    for name in ("fasterrcnn_resnet50_fpn", "fcn_resnet50", "r3d_18", "raft_large"):
        assert list(preprocessing._releases(f"torchvision:{name}", module)) == []


def test_inception_as_it_is_built_here_takes_the_weights_own_scaling() -> None:
    """torchvision switches `transform_input` on with its weights, which no builder here is asked for."""
    built = SimpleNamespace(transform_input=False)
    (release,) = preprocessing._releases("torchvision:inception_v3", built)
    assert (release.preprocessing.mean, release.preprocessing.std) == ((0.5,), (0.5,))
    (mean, std), x = IMAGENET, torch.rand(1, 3, 2, 2)
    model = models.inception_v3(init_weights=False, transform_input=True)
    assert torch.allclose(model._transform_input(transforms.Normalize(mean, std)(x)), (x - 0.5) / 0.5, atol=1e-5)


def test_timms_weights_by_hash_and_by_tag(saved, monkeypatch) -> None:
    timm = pytest.importorskip("timm")
    path = saved(timm.create_model("resnet10t").state_dict())
    cfg = timm.models.get_arch_pretrained_cfgs("resnet10t")["resnet10t.c3_in1k"]
    unknown = stated_by(load_model(path, "timm:resnet10t").module)
    assert values_of(unknown) == {} and "resnet10t.c3_in1k" in unknown.hints[0]
    tagged = stated_by(load_model(path, "timm:resnet10t.c3_in1k").module)
    assert (tagged.mean, tagged.size) == (tuple(cfg.mean), tuple(cfg.input_size[1:]))
    assert set(tagged.sources.values()) == {"timm's resnet10t.c3_in1k"}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    mine = dataclasses.replace(cfg, url=f"https://x/resnet10t_mine-{digest}.pth", crop_pct=0.99)
    monkeypatch.setattr(timm.models, "get_arch_pretrained_cfgs", lambda name: {f"{name}.mine": mine})
    assert stated_by(load_model(path, "timm:resnet10t").module).crop_pct == 0.99


# --- what travels on


def test_a_pickled_module_keeps_what_it_says(saved) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=7)
    found = stated_by(load_model(saved(model)).module)
    assert found == stated_by(model) and found.mean is not None


def test_what_was_found_is_plain_data_on_the_module(folder) -> None:
    module = folder(preprocessor_config=PROCESSOR)
    assert b"binarize" not in pickle.dumps(module.pretrained_cfg)
    assert module.pretrained_cfg["input_size"] == (3, 96, 96)
