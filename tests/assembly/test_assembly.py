"""Models in several graphs: exported in parts, put together again, equal to what was trained."""

from __future__ import annotations

import copy
import io
import json
import re
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.assembly import SessionPart
from binarize.assembly.calls import find_parts
from binarize.cli import render
from binarize.cli.output import Output
from binarize.errors import UnsupportedModelError, UsageError, VerificationError
from binarize.example_inputs import Form
from tests.models import BasicBlock, conv_bn, randomized


class Pyramid(nn.Module):
    """Two maps, by name, as detectors' backbones give them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8))
        self.body = BasicBlock(8, 8)
        self.down = BasicBlock(8, 16, 2)
        self.side = nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.body(self.stem(x))
        coarse = self.down(fine)
        zoomed = nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return OrderedDict(fine=self.side(fine) + zoomed, coarse=coarse)


class Detector(nn.Module):
    """Code that looks at values calls a pyramid, a tower shared by its levels, two convs and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Pyramid()
        self.tower = nn.Sequential(*conv_bn(16, 16), *conv_bn(16, 16))
        self.own = nn.Conv2d(16, 16, 3, padding=1)
        self.scores = nn.Conv2d(16, 4, 1)
        self.box = nn.Linear(4, 4)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        height, width = (max(image.shape[a] for image in images) for a in (1, 2))
        batch = images[0].new_zeros(len(images), 3, height, width)
        for place, image in zip(batch, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        levels = self.backbone(batch).values()
        maps = [self.scores(torch.relu(self.own(self.tower(level)))).flatten(2) for level in levels]
        found = []
        for scores in torch.cat(maps, 2):
            best = scores[:, scores.amax(0) > scores.amax(0).median()].T
            found.append({"scores": best.amax(1), "boxes": self.box(best)})
        return found


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(sizes))
    return [torch.randn(3, *size, generator=generator) for size in sizes]


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector().eval()


@pytest.fixture(scope="module")
def binary(detector: Detector) -> nn.Module:
    return randomized(binarize.apply(detector, (pictures((16, 20), (14, 20)),))).eval()


@pytest.fixture(scope="module")
def folder(binary: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts") / "detector"
    binarize.export(binary, path)
    return path


def test_every_graph_with_binary_convs_is_a_part(binary: nn.Module, folder: Path) -> None:
    assert list(find_parts(binary)) == ["backbone", "tower", "own", "scores"]
    assert {p.name for p in folder.iterdir()} == {
        "manifest.json", "rest.pt", "backbone.onnx", "tower.onnx", "own.onnx", "scores.onnx",
    }  # fmt: skip
    results = binary.report.results  # type: ignore[union-attr]
    assert results["verification"]["nodes"] >= 7 and results["verification"]["worst"] <= 1
    assert results["size"]["file"] > results["parts"]["backbone.onnx"]["bytes"] > 0
    assert set(torch.load(folder / "rest.pt")) == {"box.weight", "box.bias"}


def test_parts_know_their_place_and_what_was_decided(folder: Path) -> None:
    import onnx

    model = onnx.load(folder / "backbone.onnx")
    binary_convs = [node.name for node in model.graph.node if node.op_type == "BinaryConv2d"]
    assert "backbone.down.conv1" in binary_convs
    record = json.loads(next(p.value for p in model.metadata_props if p.key == "binarize.report"))
    assert {d["layer"].partition(".")[0] for d in record["decisions"]} == {"backbone"}


@pytest.mark.parametrize("sizes", [((16, 20), (14, 20)), ((24, 10),), ((9, 9), (30, 12), (8, 8))], ids=str)
def test_the_assembled_model_equals_the_trained_one_on_images_of_any_size(
    detector: Detector, binary: nn.Module, folder: Path, sizes: tuple[tuple[int, int], ...]
) -> None:
    """Every part on what the trained model gives it, and the code around them on the parts' results."""
    assembled = binarize.assemble(folder, detector)
    parts = find_parts(binary)
    assert {n for n, m in assembled.named_modules() if isinstance(m, SessionPart)} == set(parts)
    compared = []

    def compare(path: str):
        def hook(_: nn.Module, args: tuple[Tensor, ...], result: object) -> None:
            found = assembled.get_submodule(path)(*args)
            torch.testing.assert_close(found, result, rtol=1e-4, atol=1e-4)
            compared.append(path)

        return hook

    handles = [part.register_forward_hook(compare(path)) for path, part in parts.items()]
    with torch.no_grad():
        expected = binary(pictures(*sizes))
    for handle in handles:
        handle.remove()
    assert sorted(set(compared)) == sorted(parts) and compared.count("tower") == 2
    torch.testing.assert_close(assembled(pictures(*sizes)), expected, rtol=1e-3, atol=1e-3)


def test_the_float_model_given_stays_as_it_is_and_its_own_weights_do_not_matter(
    folder: Path, binary: nn.Module
) -> None:
    torch.manual_seed(99)
    other = Detector().eval()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assembled = binarize.assemble(folder, other, sess_options=onnxruntime.SessionOptions())
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert isinstance(other.backbone, Pyramid)
    images = pictures((16, 20), (14, 20))
    with torch.no_grad():
        torch.testing.assert_close(assembled(images), binary(images), rtol=1e-3, atol=1e-3)


def test_a_wrong_weight_bit_in_one_part_is_found(binary: nn.Module, tmp_path: Path, monkeypatch) -> None:
    from binarize.assembly import part

    original = part.emit

    def forged(lowered, inputs):
        model = original(lowered, inputs)
        name = next(node.input[1] for node in model.graph.node if node.op_type == "BinaryConv2d")
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
        return model

    monkeypatch.setattr(part, "emit", forged)
    with pytest.raises(VerificationError) as caught:
        binarize.export(binary, tmp_path / "forged")
    assert caught.value.layer is not None and caught.value.layer.startswith("backbone")
    assert not list(tmp_path.iterdir())


def test_what_the_folder_may_replace(binary: nn.Module, folder: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("mine")
    with pytest.raises(UsageError, match="other things in it"):
        binarize.export(binary, full)
    with pytest.raises(UsageError, match="needs a folder"):
        binarize.export(binary, full / "precious")
    with pytest.raises(UnsupportedModelError, match="no ONNX form") as caught:
        binarize.export(binary, tmp_path / "whole.onnx")
    assert "folder" in str(caught.value)
    before = (folder / "manifest.json").stat().st_mtime_ns
    binarize.export(binary, folder, check=False)
    assert (folder / "manifest.json").stat().st_mtime_ns != before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("manifest", [None, '{"name": "another program\'s"}'], ids=["ours", "another's"])
def test_nothing_of_others_is_lost_with_a_folder(
    binary: nn.Module, folder: Path, tmp_path: Path, manifest: str | None
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    if manifest is not None:
        (out / "manifest.json").write_text(manifest)
    else:
        (out / "notes").write_text("mine")
    before = sorted(p.name for p in out.iterdir())
    with pytest.raises(UsageError, match="other things in it, such as"):
        binarize.export(binary, out, check=False)
    assert sorted(p.name for p in out.iterdir()) == before


def test_a_linked_or_empty_folder_is_filled_and_a_nameless_one_refused(
    binary: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    for _ in range(2):
        binarize.export(binary, link, check=False)
        assert link.is_symlink() and (real / "manifest.json").exists()
        assert {p.name for p in tmp_path.iterdir()} == {"real", "link"}
    monkeypatch.chdir(real)
    with pytest.raises(UsageError, match="current folder"):
        binarize.export(binary, ".", check=False)


class SecondStage(nn.Module):
    """Crops what a first stage scores above `least` and judges the crops, however few."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least
        self.body = nn.Sequential(*conv_bn(3, 8), *conv_bn(8, 8))
        self.head = nn.Sequential(*conv_bn(8, 8), *conv_bn(8, 8))

    def forward(self, images: list[Tensor]) -> Tensor:
        maps = self.body(torch.stack(images))
        if not isinstance(maps, Tensor):  # code that no graph holds
            raise TypeError
        crops = [
            m[:, y : y + 4, x : x + 4] for m in maps for y, x in (m.mean(0)[:5, :5] > self.least).nonzero().tolist()
        ]
        return self.head(torch.stack(crops) if crops else maps.new_zeros(0, 8, 4, 4))


def test_a_head_that_the_example_leaves_without_boxes_is_exported_for_any_number(tmp_path: Path) -> None:
    images = pictures((16, 20), (16, 20))
    nothing = randomized(binarize.apply(SecondStage(1e9).eval(), (images,))).eval()
    binarize.export(nothing, tmp_path / "nothing")
    assert nothing.report.results["verification"]["worst"] <= 1  # type: ignore[union-attr]
    assembled = binarize.assemble(tmp_path / "nothing", SecondStage(1e9))
    assert assembled(images).shape == (0, 8, 4, 4)
    assembled.least = nothing.least = -1e9  # type: ignore[assignment]
    with torch.no_grad():
        found, expected = assembled(images), nothing(images)
    assert found.shape == (50, 8, 4, 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_other_models_and_broken_folders_are_refused(detector: Detector, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no such part"):
        binarize.assemble(folder, nn.Linear(2, 2))
    larger = Detector()
    larger.box = nn.Linear(4, 5)
    with pytest.raises(UnsupportedModelError, match=r"box\.weight differs"):
        binarize.assemble(folder, larger)
    with pytest.raises(UsageError, match="does not say which architecture"):
        binarize.assemble(folder)
    with pytest.raises(UsageError, match="no folder of parts"):
        binarize.assemble(tmp_path, detector)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["parts"][0]["file"] = "../elsewhere.onnx"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UnsupportedModelError, match="lies elsewhere"):
        binarize.assemble(tmp_path, detector)


def test_a_folder_cannot_choose_code_to_run(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    (tmp_path / "evil.py").write_text(f"open({str(witness)!r}, 'w')\n")
    manifest = json.loads((folder / "manifest.json").read_text()) | {"arch": f"{tmp_path}/evil.py:net"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="runs only when you name it"):
        binarize.assemble(tmp_path)
    assert not witness.exists()


@pytest.mark.parametrize("form", ["takes", "gives"])
def test_a_structure_cannot_choose_code_to_run(
    detector: Detector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    witness = tmp_path / "witness"
    (tmp_path / "evil_structure.py").write_text(f"open({str(witness)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    context = json.dumps([{"__enum__": True, "fqn": "evil_structure:Kind", "name": "A"}])
    node = {"type": "builtins.dict", "context": context, "children_spec": [{"type": None, "context": None}]}
    manifest["parts"][0][form]["structure"] = json.dumps([1, node])
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UnsupportedModelError, match="names code: the enumeration evil_structure:Kind"):
        binarize.assemble(tmp_path, detector)
    assert not witness.exists()


def test_a_part_says_when_it_is_called_in_another_way(detector: Detector, folder: Path) -> None:
    assembled = binarize.assemble(folder, detector)
    with pytest.raises(UsageError, match="other arguments"):
        assembled.get_submodule("tower")([torch.zeros(1, 16, 4, 4)])


def test_forms_are_trees_without_what_tensors_hold() -> None:
    x, y = torch.zeros(2, 3), torch.ones(4)
    form, tensors = Form.of(({"a": [x, 3], "b": None}, (y, "word")))
    assert form.fill(tensors) == ({"a": [x, 3], "b": None}, (y, "word"))
    assert Form.from_dict(json.loads(json.dumps(form.to_dict()))) == form
    assert form != Form.of(({"a": [x, 4], "b": None}, (y, "word")))[0]
    with pytest.raises(UnsupportedModelError, match="type set"):
        Form.of({1, 2})


def test_hooks_of_a_part_run_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hooked = Detector().eval()
    hooked.tower.register_forward_hook(lambda module, args, output: output * 3 + 1)
    inputs = (pictures((16, 20), (14, 20)),)
    binary = binarize.apply(hooked, inputs).eval()
    binarize.export(binary, tmp_path / "parts")
    assembled = binarize.assemble(tmp_path / "parts", hooked)
    with torch.no_grad():
        for found, wanted in zip(assembled(*inputs), binary(*inputs), strict=True):
            torch.testing.assert_close(found["scores"], wanted["scores"], rtol=1e-4, atol=1e-4)


def test_the_size_of_parts_adds_up(binary: nn.Module, folder: Path) -> None:
    text = io.StringIO()
    render.show_size(Output("human", "export", text, text), binary.report.results["size"], folder)  # type: ignore[union-attr]
    total = sum(file.stat().st_size for file in folder.iterdir())
    assert any(
        line.split()[0] == "file" and f"{total / 1e3:.2f}" in line for line in text.getvalue().splitlines() if line
    )
    shares = [float(share) for share in re.findall(r"([-\d.]+)%", text.getvalue())]
    assert shares[-1] == 100 and all(0 <= share <= 100 for share in shares)


class Gated(nn.Module):
    """A float stem whose activation meets the body's sign, and code between them that no graph holds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Sequential(*conv_bn(3, 8)), nn.Sequential(*conv_bn(8, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        if bool((y > 1e9).any()):
            y = y * 0
        return self.head(self.body(y).mean((2, 3)))


def test_a_graph_of_which_only_an_activation_was_replaced_is_a_part(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Gated().eval()
    binary = randomized(binarize.apply(model, torch.randn(2, 3, 12, 12))).eval()
    assert list(find_parts(binary)) == ["stem", "body"]
    binarize.export(binary, tmp_path / "gated")
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(binarize.assemble(tmp_path / "gated", model)(x), binary(x), rtol=1e-4, atol=1e-4)


def test_nan_weights_are_named_at_export(binary: nn.Module, tmp_path: Path) -> None:
    broken = copy.deepcopy(binary)
    with torch.no_grad():
        broken.get_submodule("scores").weight[0] = float("nan")
    with pytest.raises(UnsupportedModelError, match=r"scores\.weight: the weights hold NaN"):
        binarize.export(broken, tmp_path / "broken")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inputs", [np.zeros((2, 3, 16, 16), np.float32), (3, 16, 16)], ids=["array", "shape"])
def test_example_inputs_that_are_no_tensors(inputs: object) -> None:
    with pytest.raises(UsageError, match=r"example_inputs (.|\n)* give (a tensor|torch.randn)"):
        binarize.apply(nn.Sequential(*conv_bn(3, 8)), inputs)  # type: ignore[arg-type]
