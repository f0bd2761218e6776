"""Files that are no model, are damaged, or attack: a clear error each, and nothing ever runs."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from loading_helpers import EvalPayload, Payload, TinyNet
from safetensors.torch import save_file

from binarize.errors import BinarizeError, UnsupportedModelError, UsageError
from binarize.loading import load_model
from binarize.loading.names import dangerous, foreign
from binarize.loading.opcodes import pickle_globals


def png() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


def numpy_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


def other_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "empty"),
        (b"hello, these are not weights\n", "a text file"),
        (b"<!DOCTYPE html><html>sign in</html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (png(), "a PNG image"),
        (numpy_file(), "a NumPy array"),
        (other_zip(), "a zip archive that torch.save did not write"),
        (bytes(range(128, 256)) * 8, "unknown binary format"),
        (b"\x08\x07\x12\x07pytorch:\x00", "ONNX"),
        (b"PAR1" + bytes(64), "a parquet table"),
        (pickle.dumps({"conv.weight": [1.0]}), "plain pickle"),
        (b"PK\x03\x04" + bytes(60), "truncated or damaged"),
        (struct.pack("<Q", 50) + b'{"a": ', "truncated"),
        (struct.pack("<Q", 8) + b"{broken}", "header is damaged"),
        (b"\x80", "unknown binary|plain pickle"),
        (b"\x00", "unknown binary"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=words) as raised:
        load_model(path)
    assert raised.value.layer == str(path)
    assert raised.value.hint


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tiny, tiny_file, saved, tmp_path: Path, share: float, kind: str) -> None:
    path = tmp_path / "model.pt"
    if kind == "safetensors":
        save_file(tiny.state_dict(), path)
    else:
        saved(tiny.state_dict(), _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnsupportedModelError, match=r"truncated|damaged|plain pickle"):
        load_model(path, f"{tiny_file}:tiny")


def test_any_flipped_byte_gives_a_model_or_a_clear_error(tiny, tiny_file, saved, tmp_path: Path) -> None:
    content = saved(tiny.state_dict()).read_bytes()
    path = tmp_path / "flipped.pt"
    for position in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            load_model(path, f"{tiny_file}:tiny")
        except BinarizeError as error:
            assert error.message


@pytest.mark.parametrize("payload", [Payload, EvalPayload])
@pytest.mark.parametrize("form", ["zip", "legacy", "raw", "raw protocol 0", "in state dict"])
def test_hostile_pickles_never_run(tmp_path: Path, saved, payload: type[Payload], form: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    attack = payload(marker)
    if form.startswith("raw"):
        path.write_bytes(pickle.dumps(attack, protocol=0 if form.endswith("0") else 4))
    elif form == "in state dict":
        saved({"state_dict": {"conv.weight": torch.zeros(1)}, "args": attack})
    else:
        saved(attack, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UnsupportedModelError) as refused:
        load_model(path)
    assert not marker.exists()
    if not form.startswith("raw"):
        assert "would run" in str(refused.value)
        assert "system" in str(refused.value) or "eval" in str(refused.value)


def test_the_payload_is_real(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


def test_zip_bomb(bomb: Path) -> None:
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(UnsupportedModelError, match="decompression bomb"):
        load_model(bomb)


def test_huge_claimed_tensor_is_not_materialised(tiny_file, saved) -> None:
    path = saved({"conv.weight": torch.zeros(1).expand(1 << 36)})
    with pytest.raises(UnsupportedModelError, match="claims"):
        load_model(path, f"{tiny_file}:tiny")


@pytest.mark.parametrize(
    "content, words",
    [
        ([1, 2, 3], "holds no weights: a list"),
        (3.5, "holds no weights: a float"),
        (torch.zeros(3), r"a single tensor of shape \[3\]"),
        ({}, "an empty dictionary"),
        ({"epoch": 3, "lr": 0.1}, "dictionary with epoch, lr, and no tensor"),
        ({"state_dict": {}}, "an empty dictionary under 'state_dict'"),
    ],
)
def test_content_without_weights(saved, content: object, words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        load_model(saved(content))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_name_the_tensor(tiny, tiny_file, saved, value: float) -> None:
    with torch.no_grad():
        tiny.bn.running_var[2] = value
    with pytest.raises(UnsupportedModelError, match=r"NaN or infinity in bn\.running_var \(1 of 8 values\)"):
        load_model(saved(tiny.state_dict()), f"{tiny_file}:tiny")
    with pytest.raises(UnsupportedModelError, match="NaN or infinity"):
        load_model(saved(tiny), trust_pickle=True)


def test_integer_and_sparse_weights(tiny, tiny_file, saved) -> None:
    state = tiny.state_dict()
    path = saved({**state, "conv.weight": state["conv.weight"].to(torch.int8)})
    with pytest.raises(UnsupportedModelError, match=r"stored as integers \(conv\.weight\)"):
        load_model(path, f"{tiny_file}:tiny")
    with pytest.raises(UnsupportedModelError, match=r"'fc\.bias' is quantized, sparse"):
        load_model(saved({**state, "fc.bias": state["fc.bias"].to_sparse()}), f"{tiny_file}:tiny")


def test_names_that_do_not_fit_are_listed_with_near_ones(tiny, tiny_file, saved) -> None:
    state = {name.replace("conv", "conv1"): value for name, value in tiny.state_dict().items()}
    with pytest.raises(UnsupportedModelError) as raised:
        load_model(saved(state), f"{tiny_file}:tiny")
    assert "conv.weight [8, 3, 3, 3], file has conv1.weight" in str(raised.value)
    assert "2 the model does not have (conv1.weight [8, 3, 3, 3]; conv1.bias [8])" in str(raised.value)


def test_paths_that_cannot_be_used(tmp_path: Path, saved) -> None:
    saved({}, "resnet.pth")
    with pytest.raises(UsageError, match="no such file") as raised:
        load_model(tmp_path / "resnet.pt")
    assert "resnet.pth" in str(raised.value.hint)
    with pytest.raises(UsageError, match="is a directory") as raised:
        load_model(tmp_path)
    assert "resnet.pth" in str(raised.value.hint)
    with pytest.raises(UsageError, match="not a regular file"):
        load_model(os.devnull)
    with pytest.raises(UsageError, match="cannot be used"):
        load_model("bad\0name")
    with pytest.raises(UsageError, match="cannot be used"):
        load_model("x" * 5000)


def test_unreadable_file(saved, monkeypatch) -> None:
    path = saved({})

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        load_model(path)


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_names_are_found_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    names = pickle_globals(pickle.dumps([Payload(tmp_path), TinyNet, Payload(tmp_path)], protocol=protocol))
    assert "loading_helpers.TinyNet" in names
    assert len(dangerous(names)) == 1
    assert foreign(("torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "collections.OrderedDict")) == ()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_without_values_or_of_no_one_shape(tiny, tiny_file, saved) -> None:
    state = tiny.state_dict()
    with pytest.raises(UnsupportedModelError, match=r"'fc\.bias' has a shape but no values"):
        load_model(saved({**state, "fc.bias": state["fc.bias"].to("meta")}), f"{tiny_file}:tiny")
    nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)])
    with pytest.raises(UnsupportedModelError, match=r"'fc\.bias' is quantized, sparse, nested"):
        load_model(saved({**state, "fc.bias": nested}), f"{tiny_file}:tiny")
