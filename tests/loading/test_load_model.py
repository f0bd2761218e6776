"""Every accepted kind of file gives back the very weights that went in."""

from __future__ import annotations

import argparse
import collections
import io
import json
import pathlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from loading_helpers import SHARED, TinyNet, write_tar_checkpoint
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from binarize.errors import UnsupportedModelError, UsageError
from binarize.loading import Loaded, load_model, num_outputs
from binarize.loading.objects import _Restorer


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


@pytest.mark.parametrize("legacy", [False, True])
def test_a_module_of_library_layers_is_rebuilt_without_running_its_pickle(saved, legacy: bool) -> None:
    """Also one that was changed after it was built, which no architecture's name describes."""
    original = models.resnet18(weights=None, num_classes=7)
    original.maxpool = nn.Identity()
    original.layer4 = nn.Sequential(nn.Conv2d(256, 512, 1), nn.GELU(), nn.BatchNorm2d(512))
    original.layer1.register_forward_hook(print)
    path = saved({"model": original, "epoch": 3}, _use_new_zipfile_serialization=not legacy)
    loaded = load_model(path)
    assert_same(loaded, original)
    assert (loaded.kind, loaded.arch_how, loaded.num_classes) == ("pickled module", "pickled", 7)
    assert loaded.arch == "torchvision.models.resnet.ResNet"
    assert not loaded.module.layer1._forward_hooks
    original.layer1._forward_hooks.clear()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.module(x), original.eval()(x))


@pytest.mark.parametrize("name", ["efficientnet_b0", "nf_resnet26", "tf_mobilenetv3_small_075"])
def test_timm_modules_are_rebuilt(saved, name: str) -> None:
    timm = pytest.importorskip("timm")
    original = timm.create_model(name, num_classes=3)
    loaded = load_model(saved(original))
    assert_same(loaded, original)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.module(x), original.eval()(x))


def test_detectors_hold_more_than_layers(saved) -> None:
    original = models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    loaded = load_model(saved(original))
    assert_same(loaded, original)
    assert len(loaded.module([torch.rand(3, 320, 320)])) == 1


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_module_of_a_foreign_class_gives_its_weights(tiny, tiny_file, saved, legacy: bool) -> None:
    """The class stays unimported: its weights go into --arch, or into an architecture that they fit."""
    tiny.scale = nn.Buffer(torch.ones(1), persistent=False)
    path = saved(tiny, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsupportedModelError, match="No known architecture") as refused:
        load_model(path)
    assert "--trust-pickle" in str(refused.value.hint)
    loaded = load_model(path, spec(tiny_file))
    assert_same(loaded, tiny)
    assert loaded.arch_how == "given"
    assert any("pickled loading_helpers.TinyNet; its code was not run" in note for note in loaded.notes)


def test_a_subclass_of_a_known_architecture_is_recognised_by_its_weights(saved) -> None:
    original = models.squeezenet1_1(weights=None)
    original.__class__ = type("Mine", (type(original),), {"__module__": "__main__"})
    monkey = sys.modules["__main__"]
    monkey.Mine = type(original)  # type: ignore[attr-defined]
    path = saved(original)
    del monkey.Mine
    assert load_model(path).arch == "torchvision:squeezenet1_1"


def test_pickled_module_with_trust(tiny, saved) -> None:
    loaded = load_model(saved(tiny), trust_pickle=True)
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


@pytest.mark.parametrize("how", ["trace", "script"])
def test_torchscript_gives_its_weights_and_its_program_does_not_run(tiny, tiny_file, tmp_path: Path, how: str) -> None:
    path = tmp_path / "scripted.pt"
    tiny.eval()
    (torch.jit.trace(tiny, torch.zeros(1, 3, 8, 8)) if how == "trace" else torch.jit.script(tiny)).save(path)
    loaded = load_model(path, spec(tiny_file))
    assert_same(loaded, tiny)
    assert loaded.kind == "torchscript"
    assert any("TorchScript program loading_helpers.TinyNet" in note for note in loaded.notes)


def test_torchscript_of_a_known_architecture_is_recognised(tmp_path: Path) -> None:
    original = models.shufflenet_v2_x0_5(weights=None, num_classes=5).eval()
    torch.jit.script(original).save(tmp_path / "net.pt")
    loaded = load_model(tmp_path / "net.pt")
    assert_same(loaded, original)
    assert (loaded.arch, loaded.num_classes) == ("torchvision:shufflenet_v2_x0_5", 5)


def test_torch_export_archives_give_their_weights(tiny, tiny_file, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(tiny.eval(), (torch.ones(1, 3, 8, 8),)), path)
    loaded = load_model(path, spec(tiny_file))
    assert_same(loaded, tiny)
    assert loaded.kind == "pt2"


def test_torch_export_archives_of_torch_before_2_9(tiny, tiny_file, tmp_path: Path) -> None:
    """Written by hand: a zip with the state dict as a file that torch.save wrote."""
    content = io.BytesIO()
    torch.save(tiny.state_dict(), content)
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.2")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", content.getvalue())
    assert_same(load_model(path, spec(tiny_file)), tiny)


def test_tar_checkpoints_of_the_first_torch_versions(tiny, tiny_file, tmp_path: Path) -> None:
    """Written by hand, for no torch of today writes them; the torch of today reads it in its unsafe way."""
    path = tmp_path / "old.pt"
    write_tar_checkpoint(path, tiny.state_dict())
    assert torch.load(path, weights_only=False).keys() == tiny.state_dict().keys()
    loaded = load_model(path, spec(tiny_file))
    assert_same(loaded, tiny)
    assert loaded.kind == "tar checkpoint"


def test_sharded_pytorch_bin(tiny, tiny_file, tmp_path: Path) -> None:
    state = tiny.state_dict()
    names = list(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[:2], "pytorch_model-00002-of-00002.bin": names[2:]}
    for shard, keys in shards.items():
        torch.save({key: state[key] for key in keys}, tmp_path / shard)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {k: s for s, keys in shards.items() for k in keys}}))
    loaded = load_model(index, spec(tiny_file))
    assert_same(loaded, tiny)
    assert loaded.kind == "sharded index"


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


def test_an_object_is_not_taken_for_another_that_had_its_place_in_memory() -> None:
    """A module's attributes are looked up without its hooks: dictionaries that live for a moment."""
    restorer = _Restorer(lambda key: torch.zeros(0))
    assert all(restorer.exact({"value": i}) == {"value": i} for i in range(1000))


@pytest.mark.parametrize("key", ["ema", "net", "state_dict", "model_ema"])
@pytest.mark.parametrize("other", [{}, {"decay": 0.9, "name": "tiny"}, {"decay": 0.9, "shadow": {"x": [1]}}], ids=str)
def test_options_under_a_name_of_weights_are_passed_by(tiny, tiny_file, saved, key: str, other: dict) -> None:
    for rest in ({"model": {"state_dict": tiny.state_dict()}}, tiny.state_dict()):
        assert_same(load_model(saved({key: other, **rest}), spec(tiny_file)), tiny)


def test_float8_becomes_the_models_type(tiny, tiny_file, saved) -> None:
    state = {k: v.to(torch.float8_e4m3fn) if v.is_floating_point() else v for k, v in tiny.state_dict().items()}
    tiny.load_state_dict(state)
    assert_same(load_model(saved(state), spec(tiny_file)), tiny)


def test_of_a_tensor_in_two_shards_the_one_counts_that_the_index_names(tiny, tiny_file, tmp_path: Path) -> None:
    state = tiny.state_dict()
    names = list(state)
    save_file({key: state[key] for key in names[:3]}, tmp_path / "a.safetensors")
    stale = {names[0]: state[names[0]] + 1}
    save_file({key: state[key] for key in names[3:]} | stale, tmp_path / "b.safetensors")
    weight_map = {key: "a.safetensors" if key in names[:3] else "b.safetensors" for key in names}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same(load_model(index, spec(tiny_file)), tiny)
    index.write_text(json.dumps({"weight_map": weight_map | {names[-1]: "a.safetensors"}}))
    with pytest.raises(UnsupportedModelError, match=rf"a\.safetensors lacks {names[-1]}"):
        load_model(index, spec(tiny_file))
