"""Configurations: TOML in and out, settings, precedence, and refusals that say what to type instead."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from binarize.api import resolve_config
from binarize.config import Config, LinkConfig, SurgeryConfig, TrainingConfig, read_config
from binarize.errors import UsageError
from binarize.recipes import all_recipes, get_recipe


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- TOML


@pytest.mark.parametrize("name", all_recipes())
def test_every_recipe_survives_toml(name: str, tmp_path: Path) -> None:
    config = get_recipe(name).config
    assert config.recipe == name
    assert read_config(write(tmp_path, config.to_toml()), Config()) == config
    assert Config().updated(config.to_dict()) == config


def test_every_value_survives_toml(tmp_path: Path) -> None:
    odd = Config(
        seed=2**63 - 1,
        surgery=SurgeryConfig(keep=('la"yer\\1.*', "tab\t\n\x7f", "\N{SNOWMAN}"), binarize_stem=True),
        link=LinkConfig(kind="none", gamma_init=1e-7),
        training=TrainingConfig(epochs=0.25, mean=(0.5,), std=(0.1, 0.2, 1 / 3), compile="off"),
    )
    assert read_config(write(tmp_path, odd.to_toml()), Config()) == odd


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffseed = 3\n[training]\nepochs = 2\n")
    base = get_recipe("bireal").config
    found = read_config(path, base)
    assert (found.seed, found.training.epochs, found.link.kind) == (3, 2.0, "identity")
    assert isinstance(found.training.epochs, float)
    assert found.surgery == base.surgery


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_config(tmp_path / "nowhere.toml", Config())
    with pytest.raises(UsageError, match="cannot read"):
        read_config(tmp_path, Config())
    with pytest.raises(UsageError, match="not a TOML file") as caught:
        read_config(write(tmp_path, "epochs = = 3"), Config())
    with pytest.raises(UsageError, match="not a TOML file"):
        read_config(write(tmp_path, "epochs = " + 5000 * "["), Config())
    assert caught.value.layer == str(tmp_path / "config.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a TOML file"):
        read_config(tmp_path / "binary.toml", Config())


# --- what is refused


@pytest.mark.parametrize(
    "values, hint",
    [
        ({"training": {"epoch": 3}}, "training.epochs"),
        ({"epochs": 3}, "did you mean training.epochs?"),
        ({"training": {"seed": 3}}, "did you mean seed?"),
        ({"link": {"clip": 3}}, "did you mean conv.clip?"),
        ({"trainign": {}}, "training"),
        ({"link": {"zzz": 1}}, "known: kind, position"),
    ],
)
def test_unknown_keys_name_the_near_ones(values: dict[str, Any], hint: str) -> None:
    with pytest.raises(UsageError, match="unknown key") as caught:
        Config().updated(values, "here")
    assert caught.value.layer == "here"
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    "setting, hint",
    [
        ("training=3", None),
        ("seed=1.0", "whole number"),
        ("seed=true", "whole number"),
        ("training.batch_size=false", "whole number"),
        ('training.epochs="8"', "number such as"),
        ("training.epochs=true", "number such as"),
        ("surgery.binarize_stem=1", "true or false"),
        ("surgery.binarize_stem=True", "true or false"),
        ("surgery.keep=3", "stem"),
        ("surgery.keep=[1]", "text"),
        ("training.mean=0.5,0.5,0.5", "[0.485, 0.456, 0.406]"),
        ('training.mean=["a"]', "number such as"),
        ("training.mean=true", "number such as"),
        ("link.kind=elastc", "pooled, identity, none"),
        ("link.kind=1", "pooled, identity, none"),
        ("link.kind=['none']", "pooled, identity, none"),
        ("training.compile=true", "auto, on, off"),
    ],
)
def test_wrong_types_name_the_right_one(setting: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        Config().with_settings([setting])
    assert setting in str(caught.value.layer)
    assert hint is None or hint in str(caught.value.hint)


@pytest.mark.parametrize(
    "setting",
    [
        "seed=-1",
        f"seed={2**63}",
        "training.epochs=-0.5",
        "training.epochs=nan",
        "training.epochs=inf",
        f"training.epochs={10**400}",
        "training.batch_size=0",
        "training.batch_size=-64",
        "training.epochs=1e30",
        f"training.batch_size={10**30}",
        "training.calibration_images=0",
        "training.bn_images=-1",
        f"training.bn_images={10**30}",
        "training.workers=-1",
        "training.stages.binary.temperature=0",
        "training.learning_rate=-0.001",
        "training.stages.binary.share=-1",
        "training.warmup=1.01",
        "training.holdout=1",
        "training.mean=[]",
        "training.mean=[123.7, 116.3, 103.5]",
        "training.std=[]",
        "training.std=[0.2, 0.0, 0.2]",
        "link.gamma_init=-1",
    ],
)
def test_numbers_without_a_meaning_are_refused(setting: str) -> None:
    with pytest.raises(UsageError) as caught:
        Config().with_settings([setting])
    assert caught.value.hint


@pytest.mark.parametrize(
    "setting",
    [
        "training.epochs=0",
        "training.bn_images=0",
        "training.holdout=0",
        "training.warmup=0",
        "training.checkpoint_minutes=0",
        "training.stages.binary.distillation=0",
    ],
)
def test_numbers_that_switch_something_off_are_allowed(setting: str) -> None:
    Config().with_settings([setting])


def test_configurations_made_in_code_are_checked_too() -> None:
    with pytest.raises(UsageError, match=r"'training\.batch_size' is 0"):
        TrainingConfig(batch_size=0)
    with pytest.raises(UsageError, match=r"link\.kind"):
        LinkConfig(kind="elastc")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="seed"):
        dataclasses.replace(Config(), seed=-1)
    assert SurgeryConfig(keep=["stem"]).keep == ("stem",)  # type: ignore[arg-type]


# --- settings


@pytest.mark.parametrize(
    "setting, path, value",
    [
        ("seed=7", "seed", 7),
        ("training.epochs=3", "training.epochs", 3.0),
        (" training.epochs = 1e-1 ", "training.epochs", 0.1),
        ("link.kind=none", "link.kind", "none"),
        ('link.kind="none"', "link.kind", "none"),
        ("training.compile=on", "training.compile", "on"),
        ("surgery.binarize_stem=true", "surgery.binarize_stem", True),
        ("surgery.keep=layer1.*", "surgery.keep", ("layer1.*",)),
        ('surgery.keep=["a", "b=c"]', "surgery.keep", ("a", "b=c")),
        ("surgery.keep=[]", "surgery.keep", ()),
        ("training.mean=0.5", "training.mean", (0.5,)),
        ("training.std=[1, 0.5, 0.5]", "training.std", (1.0, 0.5, 0.5)),
    ],
)
def test_settings(setting: str, path: str, value: Any) -> None:
    found: Any = Config().with_settings([setting])
    for key in path.split("."):
        found = getattr(found, key)
    assert found == value
    assert type(found) is type(value)


def test_later_settings_win() -> None:
    assert Config().with_settings(["seed=1", "seed=2"]).seed == 2
    assert Config().with_settings(["link=none"]) == Config().with_settings(["link.kind=none"])


@pytest.mark.parametrize("setting", ["training.epochs", "", "=3", "training.=3", ".epochs=3", "a.b.c=3"])
def test_malformed_settings(setting: str) -> None:
    with pytest.raises(UsageError):
        Config().with_settings([setting])


def test_a_setting_cannot_change_the_recipe_behind_its_name() -> None:
    with pytest.raises(UsageError) as caught:
        Config().with_settings(["recipe=bireal"])
    assert caught.value.hint == "--recipe bireal"


# --- precedence


def test_recipe_then_file_then_settings(tmp_path: Path) -> None:
    path = write(tmp_path, "seed = 1\n[training]\nepochs = 2\n[link]\nposition = 'pre_bn'\n")
    found = resolve_config("bireal", path, ["training.epochs=3"])
    assert (found.recipe, found.link.kind) == ("bireal", "identity")
    assert (found.seed, found.link.position, found.training.epochs) == (1, "pre_bn", 3.0)


def test_a_file_names_its_own_recipe_unless_one_is_given(tmp_path: Path) -> None:
    path = write(tmp_path, "recipe = 'bireal'\nseed = 4\n")
    own, given = resolve_config(None, path), resolve_config("el", path)
    assert (own.recipe, own.link.kind, own.seed) == ("bireal", "identity", 4)
    assert (given.recipe, given.link.kind, given.seed) == ("el", "elastic", 4)


def test_without_anything_it_is_elastic_link() -> None:
    assert resolve_config() == get_recipe("el").config


def test_a_config_is_taken_as_it_is() -> None:
    config = Config(recipe="el", seed=9, link=LinkConfig(kind="none"))
    assert resolve_config("bireal", config) == config
    assert resolve_config(None, config, ["seed=1"]) == dataclasses.replace(config, seed=1)


def test_unknown_recipes_name_the_near_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean bireal"):
        resolve_config("bi-real")
    with pytest.raises(UsageError, match="unknown recipe 'nonsense'"):
        resolve_config(None, write(tmp_path, "recipe = 'nonsense'"))
