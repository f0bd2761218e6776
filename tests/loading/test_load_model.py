"""Every accepted kind of file gives back the very weights that went in."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loading_helpers import SHARED, TinyNet
from safetensors.torch import save_file
from torch import nn

from binarize.errors import UnsupportedModelError, UsageError
from binarize.loading import Loaded, load_model, num_outputs


def assert_same(loaded: Loaded, original: nn.Module) -> None:
    state, expected = loaded.module.state_dict(), original.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert not loaded.module.training


def spec(file: Path, factory: str = "tiny") -> str:
    return f"{file}:{factory}"


@pytest.mark.parametrize("legacy", [False, True])
def test_bare_state_dict_in_both_formats(tiny, tiny_file, saved, legacy: bool) -> None:
    path = saved(tiny.state_dict(), _use_new_zipfile_serialization=not legacy)
    loaded = load_model(path, spec(tiny_file))
    assert_same(loaded, tiny)
    assert loaded.kind == ("legacy checkpoint" if legacy else "checkpoint")
    assert (loaded.arch_how, loaded.num_classes, loaded.source) == ("given", 4, str(path))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "weights", "module"])
def test_checkpoint_dictionaries(tiny, tiny_file, saved, key: str) -> None:
    path = saved({"epoch": 3, key: tiny.state_dict(), "optimizer": {"state": {}}})
    loaded = load_model(path, spec(tiny_file))
    assert_same(loaded, tiny)
    assert any(f"'{key}'" in note for note in loaded.notes)


def test_averaged_weights_win_and_that_is_said(tiny, tiny_file, saved) -> None:
    averaged = {f"module.{k}": v for k, v in tiny.state_dict().items()} | {"n_averaged": torch.tensor(9)}
    path = saved({"model": TinyNet().state_dict(), "model_ema": averaged})
    loaded = load_model(path, spec(tiny_file))
    assert_same(loaded, tiny)
    assert any("averaged weights 'model_ema'" in note and "'model'" in note for note in loaded.notes)
    assert any("n_averaged" in note for note in loaded.notes)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module.model.", "model.net."])
def test_shared_prefixes_are_cut(tiny, tiny_file, saved, prefix: str) -> None:
    loaded = load_model(saved({prefix + k: v for k, v in tiny.state_dict().items()}), spec(tiny_file))
    assert_same(loaded, tiny)
    assert any(prefix in note for note in loaded.notes)


def test_a_prefix_that_belongs_to_the_architecture_stays(tmp_path, tiny_file, saved) -> None:
    tiny_file.write_text(
        tiny_file.read_text()
        + "\nclass Wrapped(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        + "        self.model = TinyNet()\n"
    )
    wrapped = nn.ModuleDict({"model": TinyNet()})
    assert_same(load_model(saved(wrapped.state_dict()), spec(tiny_file, "Wrapped")), wrapped)


def test_training_options_beside_the_weights_are_let_in(tiny, tiny_file, saved) -> None:
    path = saved(
        {
            "model": tiny.state_dict(),
            "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs/1")),
            "best": np.float64(0.9),
            "history": np.arange(3.0),
            "meters": collections.defaultdict(list),
        }
    )
    assert_same(load_model(path, spec(tiny_file)), tiny)


def test_old_files_without_batch_counters(tiny, tiny_file, saved) -> None:
    path = saved({k: v for k, v in tiny.state_dict().items() if "num_batches" not in k})
    assert_same(load_model(path, spec(tiny_file)), tiny)


def test_half_precision_becomes_the_models_type(tiny, tiny_file, saved) -> None:
    tiny.half()
    loaded = load_model(saved(tiny.state_dict()), spec(tiny_file))
    assert loaded.module.conv.weight.dtype == torch.float32
    assert torch.equal(loaded.module.conv.weight, tiny.conv.weight.float())
    assert any("float16" in note for note in loaded.notes)


def test_safetensors_whole_and_sharded(tiny, tiny_file, tmp_path: Path) -> None:
    state = tiny.state_dict()
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors", spec(tiny_file))
    assert_same(loaded, tiny)
    assert loaded.kind == "safetensors"

    names = list(state)
    shards = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for shard, keys in shards.items():
        save_file({key: state[key] for key in keys}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: s for s, keys in shards.items() for key in keys}}))
    assert_same(load_model(index, spec(tiny_file)), tiny)

    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match=r"shard b\.safetensors is missing"):
        load_model(index, spec(tiny_file))


def test_number_of_classes_is_read_from_the_head(tiny_file, saved) -> None:
    original = TinyNet(num_classes=7)
    loaded = load_model(saved(original.state_dict()), spec(tiny_file))
    assert_same(loaded, original)
    assert loaded.num_classes == 7
    assert any("7 classes" in note for note in loaded.notes)


def test_number_of_classes_can_be_given(tiny, tiny_file, saved) -> None:
    path = saved(tiny.state_dict())
    assert load_model(path, spec(tiny_file), num_classes=4).num_classes == 4
    with pytest.raises(UnsupportedModelError, match="do not fit"):
        load_model(path, spec(tiny_file), num_classes=5)
    with pytest.raises(UsageError, match="no argument num_classes"):
        load_model(path, spec(tiny_file, "fixed"), num_classes=4)


def test_pickled_module_needs_trust(tiny, saved) -> None:
    path = saved(tiny)
    with pytest.raises(UnsupportedModelError) as refused:
        load_model(path)
    assert "loading_helpers.TinyNet" in str(refused.value)
    assert "--trust-pickle" in str(refused.value)
    assert "runs code" in str(refused.value)
    loaded = load_model(path, trust_pickle=True)
    assert_same(loaded, tiny)
    assert (loaded.kind, loaded.arch_how, loaded.num_classes) == ("pickled module", "pickled", 4)
    assert loaded.arch == "loading_helpers.TinyNet"


def test_trusted_module_inside_a_checkpoint_and_with_arch(tiny, tiny_file, saved) -> None:
    path = saved({"model": tiny.half(), "epoch": 1})
    assert load_model(path, trust_pickle=True).module.conv.weight.dtype == torch.float32
    loaded = load_model(path, spec(tiny_file), trust_pickle=True)
    assert (loaded.arch_how, type(loaded.module).__module__) == ("given", "tiny_models")


def test_trusted_module_whose_class_is_gone(tiny_file, saved, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tiny_file.parent))
    import tiny_models

    path = saved(tiny_models.tiny())
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "tiny_models")
    with pytest.raises(UnsupportedModelError, match="cannot be imported: No module named 'tiny_models'"):
        load_model(path, trust_pickle=True)


def test_torchscript_gives_its_weights_when_trusted(tiny, tiny_file, tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    torch.jit.trace(tiny.eval(), torch.zeros(1, 3, 8, 8)).save(path)
    with pytest.raises(UnsupportedModelError, match="TorchScript file is a program"):
        load_model(path, spec(tiny_file))
    loaded = load_model(path, spec(tiny_file), trust_pickle=True)
    assert_same(loaded, tiny)
    assert loaded.kind == "torchscript"


def test_loading_leaves_the_random_state_alone(tiny, tiny_file, saved) -> None:
    path = saved(tiny.state_dict())
    before = torch.get_rng_state()
    load_model(path, spec(tiny_file))
    assert torch.equal(torch.get_rng_state(), before)


def test_num_outputs() -> None:
    assert num_outputs(nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Linear(5, 9))) == 9
    assert num_outputs(nn.ReLU()) is None


@pytest.mark.parametrize("depth, digest", [(20, "12fca82f"), (32, "d509ac18"), (44, "014dd654")])
def test_real_cifar_checkpoints_fit_our_resnets(depth: int, digest: str) -> None:
    path = SHARED / "models" / f"resnet{depth}-{digest}.th"
    if not path.exists():
        pytest.skip("the pretrained CIFAR ResNets are not beside this repository")
    loaded = load_model(path, f"{Path(__file__).parents[2] / 'examples' / 'cifar_resnet.py'}:resnet{depth}")
    assert loaded.num_classes == 10
    original = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    assert torch.equal(loaded.module.linear.weight, original["module.linear.weight"])
