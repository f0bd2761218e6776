"""How images are seen: who is believed, what is refused, and how it is said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from binarize.api import settle_preprocessing
from binarize.config import Config
from binarize.preprocessing import DEFAULT, SETTINGS, Preprocessing, options_for

SAID = Preprocessing.said("model", mean=[0.5, 0.5, 0.5], std=0.25, size=(32, 48), crop_pct=0.9, interpolation="bicubic")


def test_the_user_goes_before_the_model_and_the_model_before_the_defaults() -> None:
    config, found = settle_preprocessing(Config().with_settings(["training.crop_pct=1"]), SAID)
    training = config.training
    assert (training.mean, training.std, training.interpolation) == ((0.5,) * 3, (0.25,), "bicubic")
    assert training.crop_pct == found.crop_pct == 1
    assert found.size == (32, 48)
    assert found.sources == dict.fromkeys(["mean", "std", "size", "interpolation"], "model") | {
        "crop_pct": "configuration"
    }
    assert "crop_pct: as configured, though model says otherwise." in found.hints
    assert settle_preprocessing(Config(), SAID)[1].hints == ()


def test_without_a_word_it_is_as_it_always_was() -> None:
    config, found = settle_preprocessing(Config(), Preprocessing())
    assert config.training.mean == (0.485, 0.456, 0.406) and config.training.std == (0.229, 0.224, 0.225)
    assert (config.training.crop_pct, config.training.interpolation) == (0.875, "bilinear")
    assert set(found.sources.values()) == {"default"} and found.size is None
    (hint,) = found.with_warning().hints
    assert "mean and std are ImageNet's" in hint and "--set training.mean=" in hint
    settled = Config().with_settings(["training.mean=0.5", "training.std=0.5"])
    assert settle_preprocessing(settled, Preprocessing())[1].with_warning().hints == ()


def test_a_configuration_of_earlier_versions_says_mean_and_std() -> None:
    old = Config().to_dict()
    old["training"] |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    del old["training"]["crop_pct"], old["training"]["interpolation"]
    known = Preprocessing.configured(Config().updated(old), "net.onnx")
    assert known.sources == {"mean": "net.onnx", "std": "net.onnx"}
    assert settle_preprocessing(Config(), known)[0] == DEFAULT.put_into(Config())


@pytest.mark.parametrize(
    "values",
    [
        {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]},
        {"mean": [0.5] * 4, "std": [0.5] * 4},
        {"mean": [], "std": []},
        {"mean": "auto", "std": "auto"},
        {"mean": [0.5, None, 0.5], "std": 0.5},
        {"mean": 0.5, "std": 0},
        {"mean": 0.5, "std": float("nan")},
        {"mean": True, "std": 1},
        {"mean": 0.5},
        {"size": 224},
        {"size": [224]},
        {"size": ["a", "b"]},
        {"size": [0, 224]},
        {"size": [1e9, 224]},
        {"size": [10**400, 1]},
        {"size": [224.5, 224]},
        {"size": {"height": 1}},
        {"crop_pct": 1.15},
        {"crop_pct": [0.9]},
        {"interpolation": "random"},
        {"interpolation": 3},
    ],
)
def test_what_is_of_no_use_is_a_hint_and_no_value(values: dict[str, Any]) -> None:
    found = Preprocessing.said("config.json", **values)
    assert found.sources == {} and found.hints and all("config.json" in hint for hint in found.hints)
    assert found == Preprocessing(hints=found.hints)


def test_it_survives_reports_and_timms_words() -> None:
    known = SAID.hinted("Look.")
    assert Preprocessing.from_dict(json.loads(json.dumps(known.to_dict()))) == known
    again = Preprocessing.from_timm(SAID.to_timm(), "model")
    assert again == SAID
    assert set(SAID.to_timm()) == {"input_size", *SETTINGS}
    squashed = Preprocessing.from_timm({"crop_mode": "squash", "crop_pct": 1.0, "mean": None}, "cfg")
    assert "squash" in squashed.hints[0] and squashed.crop_pct == 1


def test_it_is_said_in_a_line() -> None:
    text = Preprocessing.said("cfg", mean=0.5, std=[0.1, 0.2, 0.25], size=(224, 256)).over(DEFAULT).describe()
    assert text == "224 x 256, mean 0.5, std 0.1 0.2 0.25 (cfg); crop_pct 0.875, bilinear (default)"
    small = DEFAULT.sized((32, 32), "the images").describe()
    assert "crop_pct" not in small and "bilinear" not in small, "neither means anything where the whole image is seen"
    assert options_for({"size": (299, 299), "mean": (0.5,) * 3, "interpolation": "bicubic"}) == (
        "--input-size 3,299,299 --set training.mean=[0.5,0.5,0.5] --set training.interpolation=bicubic"
    )


def test_one_number_equals_three_of_it() -> None:
    one, three = (Preprocessing.said("x", mean=mean, std=1) for mean in (0.5, [0.5, 0.5, 0.5]))
    assert one.differing(three) == {} == three.differing(one)
    assert set(one.differing(DEFAULT)) == {"mean", "std"}
