"""Data sets from every source, and batches that are the same on every run."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import fx
from torchvision.transforms import v2

from binarize.errors import EnvironmentProblem, UsageError
from binarize.loading import load_model
from binarize.preprocessing import Preprocessing
from binarize.training.data import (
    TensorImages,
    available_splits,
    check_classes,
    image_size,
    make_loader,
    open_dataset,
    split_train_val,
)
from binarize.training.data.augment import transform_for

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small get slower with threads, a hundredfold where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encoded(array: np.ndarray, mode: str | None = None, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


def picture(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def memory(count: int = 20, size: int = 8, channels: int = 3, classes: int = 4) -> TensorImages:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return TensorImages(images, torch.arange(count) % classes, [f"c{k}" for k in range(classes)])


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Any,
    names: list[str] | None = None,
    plain: bool = False,
) -> Path:
    column: Any = list(images) if plain else [{"bytes": data, "path": None} for data in images]
    kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(column, kind), "label": labels})
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path)
    return path


def write_folder(root: Path, classes: dict[str, int], size: int = 8) -> Path:
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(picture(10 * number + k, size, size)).save(root / name / f"{k}.png")
    return root


def batches(dataset: Any, **changes: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    options: dict[str, Any] = {
        "input_size": (3, 8, 8),
        "batch_size": 6,
        "train": True,
        "seed": 5,
        "epoch": 0,
    }
    return list(make_loader(dataset, **{**options, "mean": MEAN, "std": STD, **changes}))


def same(one: list[Any], other: list[Any]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


# --- sources


@pytest.mark.parametrize("plain", [False, True])
def test_parquet(tmp_path: Path, plain: bool) -> None:
    images = [encoded(picture(k)) for k in range(3)]
    path = write_parquet(tmp_path / "data.parquet", images, [1, 0, 1], ["cat", "dog"], plain)
    dataset = open_dataset(path)
    assert (len(dataset), dataset.classes, dataset.label(0)) == (3, ("cat", "dog"), 1)
    assert torch.equal(dataset.image(2), torch.from_numpy(picture(2)).permute(2, 0, 1))
    assert dataset.image(0).dtype == torch.uint8


def test_parquet_without_names_counts_the_classes(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d.parquet", [encoded(picture(0))] * 2, [0, 2])
    assert open_dataset(path).classes == ("0", "1", "2")


def test_parquet_splits_in_several_files(tmp_path: Path) -> None:
    for name, labels in {"train-0": [0, 1], "train-1": [1], "test": [0]}.items():
        images = [encoded(picture(k)) for k in range(len(labels))]
        write_parquet(tmp_path / f"{name}.parquet", images, labels, ["a", "b"])
    assert available_splits(tmp_path) == ("train", "val")
    assert open_dataset(tmp_path).labels.tolist() == [0, 1, 1]
    assert open_dataset(tmp_path, split="val").labels.tolist() == [0]
    assert open_dataset(tmp_path, split="test").labels.tolist() == [0]


def test_folder(tmp_path: Path) -> None:
    dataset = open_dataset(write_folder(tmp_path / "d", {"cat": 2, "ant": 1}))
    assert (dataset.classes, dataset.labels.tolist()) == (("ant", "cat"), [0, 1, 1])
    assert torch.equal(dataset.image(0), torch.from_numpy(picture(10)).permute(2, 0, 1))
    assert available_splits(tmp_path / "d") == ()
    with pytest.raises(UsageError, match="no held-out split"):
        open_dataset(tmp_path / "d", split="val")


def test_folder_splits_share_their_class_numbers(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"ant": 1, "bee": 1, "cat": 1})
    write_folder(tmp_path / "val", {"cat": 2})
    assert len(open_dataset(tmp_path)) == 3
    held = open_dataset(tmp_path, split="val")
    assert (held.classes, held.labels.tolist()) == (("ant", "bee", "cat"), [2, 2])
    write_folder(tmp_path / "val", {"dog": 1})
    with pytest.raises(UsageError, match="'dog' is not among the training classes"):
        open_dataset(tmp_path, split="val")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_image_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "d" / "a" / "x.tiff"
    path.parent.mkdir(parents=True)
    grey = np.full((5, 7), 128, np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    if mode == "LA":
        path = path.with_suffix(".png")
    image.save(path)
    pixels = open_dataset(tmp_path / "d").image(0)
    assert pixels.shape == (3, 5, 7)
    if mode != "1":
        assert int((pixels.int() - 128).abs().max()) <= 1


# --- bad data


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "d", {"a": 1, "b": 1})
    broken = root / "b" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UsageError, match=r"0\.png: the image cannot be decoded"):
        batches(open_dataset(root))
    images = [encoded(picture(0)), b"garbage", None]
    path = write_parquet(tmp_path / "d.parquet", images, [0, 0, 0])
    for row in (1, 2):
        with pytest.raises(UsageError, match=f"row {row}: the image cannot be decoded"):
            open_dataset(path).image(row)


def test_unreadable_image_in_a_worker_is_the_same_short_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d.parquet", [encoded(picture(0, 80, 80)), b"garbage"], [0, 0])
    with pytest.raises(UsageError, match="row 1: the image cannot be decoded") as raised:
        batches(open_dataset(path), input_size=(3, 72, 72), workers=1)
    assert "Traceback" not in str(raised.value)


@pytest.mark.parametrize(
    "labels, names, words",
    [
        ([0, 7], ["a", "b"], "label 7 of row 1 is out of range: there are 2 classes"),
        ([0, -1], ["a", "b"], "label -1 of row 1"),
        (["cat", "dog"], None, "'label' holds string, not integers"),
        ([0.5, 1.0], None, "holds double, not integers"),
        (pa.array([0, None]), None, "1 empty labels"),
    ],
)
def test_bad_labels(tmp_path: Path, labels: Any, names: list[str] | None, words: str) -> None:
    path = write_parquet(tmp_path / "d.parquet", [encoded(picture(0))] * 2, labels, names)
    with pytest.raises(UsageError, match=words):
        open_dataset(path)


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"picture": [b""], "label": [0]}), path)
    with pytest.raises(UsageError, match="no column 'image', only picture, label"):
        open_dataset(path)
    pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), path)
    with pytest.raises(UsageError, match="holds string, not encoded images"):
        open_dataset(path)
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}), path)
    with pytest.raises(UsageError, match="data set is empty"):
        open_dataset(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match="cannot be read"):
        open_dataset(path)
    path.write_text("no parquet")
    with pytest.raises(UsageError, match="Not a parquet file"):
        open_dataset(path)


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or directory"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="No images here"):
        open_dataset(tmp_path)
    with pytest.raises(UsageError, match="no split 'tset'"):
        open_dataset(tmp_path, split="tset")
    (tmp_path / "d" / "empty").mkdir(parents=True)
    with pytest.raises(UsageError, match="class 'empty' has no images"):
        open_dataset(tmp_path / "d")


def test_bad_memory_and_options() -> None:
    with pytest.raises(UsageError, match="must be uint8"):
        TensorImages(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), ["a"])
    with pytest.raises(UsageError, match="2 integers"):
        TensorImages(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), ["a"])
    for change in ({"batch_size": 0}, {"input_size": (2, 8, 8)}, {"std": (0.0,)}, {"mean": (1.0, 2.0)}):
        with pytest.raises(UsageError):
            batches(memory(), **change)
    with pytest.raises(UsageError, match="no augmentation 'flip'"):
        batches(memory(), augment="flip")


def test_check_classes() -> None:
    check_classes(memory(classes=4), 4)
    with pytest.raises(UsageError, match="has 4 classes, the model 10 outputs"):
        check_classes(memory(classes=4), 10)


# --- batches


def test_evaluation_batches_are_the_normalised_images_in_order() -> None:
    dataset = memory(20)
    found = batches(dataset, train=False)
    assert [len(labels) for _, labels in found] == [6, 6, 6, 2]
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    expected = (dataset.images / 255 - mean) / std
    torch.testing.assert_close(torch.cat([images for images, _ in found]), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.cat([labels for _, labels in found]), dataset.labels)


@pytest.mark.parametrize("size", [8, 72])
def test_batches_depend_on_seed_epoch_and_index_alone(size: int) -> None:
    dataset = memory(20, size=size)
    options = {"input_size": (3, size, size)}
    whole = batches(dataset, **options)
    assert len(whole) == 3  # the incomplete fourth batch is left out of training
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(whole, batches(dataset, **options))
    assert torch.equal(state, torch.get_rng_state())
    assert same(whole[2:], batches(dataset, start_batch=2, **options))
    assert batches(dataset, start_batch=9, **options) == []
    assert not same(whole, batches(dataset, epoch=1, **options))
    assert not same(whole, batches(dataset, seed=6, **options))
    if size > 64:
        assert same(whole, batches(dataset, workers=2, **options))
        assert torch.equal(state, torch.get_rng_state())


def test_skipped_batches_are_not_decoded(tmp_path: Path) -> None:
    images = [b"garbage"] * 6 + [encoded(picture(k, 72, 72)) for k in range(6)]
    dataset = open_dataset(write_parquet(tmp_path / "d.parquet", images, [0] * 12))
    assert len(batches(dataset, train=False, input_size=(3, 72, 72), start_batch=1)) == 1


def test_small_images_are_decoded_once(tmp_path: Path, monkeypatch) -> None:
    dataset = open_dataset(write_parquet(tmp_path / "d.parquet", [encoded(picture(k)) for k in range(12)], [0] * 12))
    calls: list[int] = []
    original = dataset.image
    monkeypatch.setattr(dataset, "image", lambda index: (calls.append(index), original(index))[1])
    first, held = split_train_val(dataset, 0.5, seed=0)
    for epoch in range(3):
        batches(first, epoch=epoch)
        batches(held, epoch=epoch, train=False)
    assert sorted(calls) == list(range(12))
    cached = batches(dataset)
    monkeypatch.setattr("binarize.training.data.dataset.MAX_CACHE_BYTES", 10)
    assert same(cached, batches(dataset))
    assert len(calls) == 12 + 12


def test_crop_is_a_zero_padded_shift_and_flips_are_switchable() -> None:
    dataset = memory(40, size=16, classes=40)
    plain = torch.cat([images for images, _ in batches(dataset, train=False, input_size=(3, 16, 16))])

    def shifts(image: torch.Tensor, original: torch.Tensor) -> bool:
        windows = F.pad(original, (2, 2, 2, 2)).unfold(1, 16, 1).unfold(2, 16, 1)
        return bool((windows == image[:, None, None]).flatten(3).all(3).all(0).any())

    for augment, flips in (("standard", True), ("crop", False)):
        found = batches(dataset, input_size=(3, 16, 16), augment=augment, batch_size=40)
        images, labels = found[0]
        straight = [shifts(image, plain[label]) for image, label in zip(images, labels, strict=True)]
        mirrored = [shifts(image.flip(2), plain[label]) for image, label in zip(images, labels, strict=True)]
        assert all(a or b for a, b in zip(straight, mirrored, strict=True))
        assert (8 <= sum(mirrored) <= 32) if flips else all(straight)
    untouched, labels = batches(dataset, input_size=(3, 16, 16), augment="none", batch_size=40)[0]
    assert torch.equal(untouched, plain[labels])


def test_large_images_are_resized_and_cropped(tmp_path: Path) -> None:
    images = [encoded(picture(0, 100, 150)), encoded(picture(1, 90, 80)), encoded(picture(2, 40, 300))]
    dataset = open_dataset(write_parquet(tmp_path / "d.parquet", images, [0, 0, 0]))
    for train in (True, False):
        assert batches(dataset, train=train, input_size=(3, 70, 70), batch_size=3)[0][0].shape == (
            3,
            3,
            70,
            70,
        )
    assert batches(dataset, train=False, input_size=(1, 32, 48), batch_size=3, mean=[0.5], std=[0.5])[0][0].shape == (
        3,
        1,
        32,
        48,
    )


def test_channels_follow_the_model() -> None:
    one = batches(memory(channels=1), train=False, mean=(0.5,), std=(0.5,))[0][0]
    assert torch.equal(one[:, 0], one[:, 2])
    grey = batches(memory(), train=False, input_size=(1, 8, 8), mean=(0.0,), std=(1.0,))[0][0]
    luma = (memory().images[:6] * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    torch.testing.assert_close(grey[:, 0] * 255, luma, rtol=0, atol=0.51)


def test_fewer_images_than_a_batch_still_train() -> None:
    assert [len(labels) for _, labels in batches(memory(4))] == [4]


def test_split_is_stratified_disjoint_and_repeatable() -> None:
    dataset = memory(40)
    train, held = split_train_val(dataset, 0.25, seed=3)
    assert torch.bincount(held.labels).tolist() == [2, 2, 2, 2] or len(held) == 8
    assert sorted(train.indices.tolist() + held.indices.tolist()) == list(range(40))
    assert torch.equal(held.indices, split_train_val(dataset, 0.25, seed=3)[1].indices)
    assert not torch.equal(held.indices, split_train_val(dataset, 0.25, seed=4)[1].indices)
    assert torch.equal(held.image(0), dataset.image(int(held.indices[0])))
    for fraction in (0.0, 1.0, 0.01):
        with pytest.raises(UsageError):
            split_train_val(dataset, fraction, seed=0)


# --- real data and the examples


def test_pretrained_resnet20_on_cifar10() -> None:
    weights = SHARED / "models" / "resnet20-12fca82f.th"
    data = SHARED / "data" / "cifar10" / "test.parquet"
    if not (weights.exists() and data.exists()):
        pytest.skip("CIFAR-10 and its pretrained ResNet-20 are not beside this repository")
    model = load_model(weights, f"{ROOT / 'examples' / 'cifar_resnet.py'}:resnet20").module
    dataset = open_dataset(data)
    check_classes(dataset, 10)
    count, correct = 1024, 0
    loader = make_loader(
        dataset, input_size=(3, 32, 32), batch_size=256, train=False, seed=0, epoch=0, mean=MEAN, std=STD
    )
    with torch.inference_mode():
        for images, labels in list(loader)[: count // 256]:
            correct += int((model(images).argmax(1) == labels).sum())
    # 81.0 % on all 10,000; four standard errors of the sample are 4.9 points.
    assert abs(correct / count - 0.81) < 0.05


@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110"])
def test_cifar_resnets_trace(name: str) -> None:
    model = getattr(example("cifar_resnet"), name)(num_classes=7).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(fx.symbolic_trace(model)(images), model(images))
    assert model(images).shape == (2, 7)
    depth = sum(isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)) for layer in model.modules())
    assert depth == int(name.removeprefix("resnet"))


def test_digits_cnn_traces_and_learns() -> None:
    pytest.importorskip("sklearn")
    digits = example("digits_cnn")
    torch.manual_seed(0)
    model = digits.digits_cnn()
    assert 50_000 < sum(p.numel() for p in model.parameters()) < 150_000
    train, test = digits.load_digits_split()
    assert (len(train), len(test), train.images.shape[1:]) == (1438, 359, (1, 8, 8))
    assert int(train.images.max()) == 255
    options = {"input_size": (1, 8, 8), "batch_size": 64, "seed": 0, "mean": (0.5,), "std": (0.5,)}
    optimizer = torch.optim.AdamW(model.parameters())
    epochs = 6
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=22 * epochs)
    for epoch in range(epochs):
        for images, labels in make_loader(train, train=True, epoch=epoch, augment="none", **options):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    images, labels = next(iter(make_loader(test, train=False, epoch=0, **{**options, "batch_size": 500})))
    with torch.inference_mode():
        traced = fx.symbolic_trace(model)(images)
        assert torch.equal(traced, model(images))
    assert (traced.argmax(1) == labels).float().mean() > 0.95


def test_digits_without_scikit_learn(monkeypatch) -> None:
    digits = example("digits_cnn")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(EnvironmentProblem, match="scikit-learn, which is not installed"):
        digits.load_digits_split()


@pytest.mark.parametrize(("scale", "kind"), [(1 / 255, np.float32), (1, np.float32), (1, np.int32), (256, np.int32)])
def test_wide_grey_keeps_its_picture(tmp_path: Path, scale: float, kind: type) -> None:
    """TIFF has no range for floats and 32-bit integers; values in [0, 1] and [0, 255] had become black."""
    grey = np.arange(64, dtype=np.float64).reshape(8, 8) * 4
    folder = tmp_path / "d" / "a"
    folder.mkdir(parents=True)
    Image.fromarray((grey * scale).astype(kind)).save(folder / "0.tiff")
    found = open_dataset(tmp_path / "d").image(0)
    assert (found[0].double() - torch.from_numpy(grey)).abs().max() <= 1


@pytest.mark.parametrize("size", [(64, 128), (128, 64), (96, 96)])
@pytest.mark.parametrize("shape", [(256, 512), (512, 256), (300, 300), (97, 200)])
def test_evaluation_sees_the_middle_of_an_image_at_seven_eighths(size: tuple[int, int], shape: tuple[int, int]) -> None:
    """Of the side that binds; of the other no more: a wide input is no reason to zoom in."""
    rows, columns = torch.arange(shape[0]) / shape[0], torch.arange(shape[1]) / shape[1]
    image = torch.stack([rows[:, None].expand(shape), columns.expand(shape)])
    seen = transform_for(size, "none")(image)
    assert seen.shape[1:] == size
    shares = [float(seen[0].max() - seen[0].min()), float(seen[1].max() - seen[1].min())]
    binding = 0 if shape[0] * size[1] <= shape[1] * size[0] else 1
    assert shares[binding] == pytest.approx(7 / 8, abs=0.03)
    assert shares[binding] >= max(shares) - 0.02
    if size[0] == size[1]:
        reference = v2.Compose([v2.Resize(round(size[0] * 8 / 7), antialias=True), v2.CenterCrop(size)])
        assert torch.equal(seen, reference(image))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side, scaled", [(224, 232), (96, 96), (128, 147)])
def test_evaluation_sees_what_torchvisions_presets_see(side: int, scaled: int, interpolation: str) -> None:
    from torchvision.transforms._presets import ImageClassification

    preset = ImageClassification(
        crop_size=side, resize_size=scaled, interpolation=v2.InterpolationMode(interpolation), mean=MEAN, std=STD
    )
    image = torch.from_numpy(picture(3, 300, 260)).permute(2, 0, 1)
    dataset = TensorImages(image[None], torch.tensor([0]), ["c"])
    ((seen, _),) = batches(
        dataset, input_size=(3, side, side), train=False, crop_pct=side / scaled, interpolation=interpolation
    )
    assert (seen[0] - preset(image)).abs().mean() < 0.01, "but for how levels of 255 are rounded"
    other = batches(dataset, input_size=(3, side, side), train=False, crop_pct=0.8)[0][0]
    assert (seen - other).abs().mean() > 0.2


def test_evaluation_sees_what_timm_sees() -> None:
    timm_data = pytest.importorskip("timm.data")
    array = np.asarray(Image.fromarray(picture(3, 20, 26)).resize((320, 256), Image.Resampling.BICUBIC))
    cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 224, 224), "crop_pct": 0.96}
    theirs = timm_data.create_transform(**cfg, interpolation="bicubic", is_training=False)(Image.fromarray(array))
    dataset = TensorImages(torch.from_numpy(array.copy()).permute(2, 0, 1)[None], torch.tensor([0]), ["c"])
    same = {"mean": cfg["mean"], "std": cfg["std"], "crop_pct": cfg["crop_pct"], "interpolation": "bicubic"}
    ((seen, _),) = batches(dataset, input_size=cfg["input_size"], train=False, **same)
    # timm rounds the scaled side down; 224 / 0.96 has one size either way.
    assert (seen[0] - theirs).abs().mean() < 0.01
    assert (batches(dataset, input_size=cfg["input_size"], train=False)[0][0][0] - theirs).abs().mean() > 0.2


def test_training_scales_as_told_too() -> None:
    dataset = memory(count=6, size=100)
    one, other = (
        batches(dataset, input_size=(3, 72, 72), interpolation=interpolation)[0][0]
        for interpolation in ("bilinear", "bicubic")
    )
    assert 0.01 < (one - other).abs().mean() < 0.5, "the same crops, scaled otherwise"


@pytest.mark.parametrize(
    "side, known, asked, expected, source",
    [
        (300, None, None, (224, 224), "default"),
        (300, (299, 299), None, (299, 299), "cfg"),
        (300, (32, 32), None, (32, 32), "cfg"),
        (300, (299, 299), (3, 96, 128), (96, 128), "option"),
        (32, None, None, (32, 32), "the images"),
        (28, (32, 32), None, (32, 32), "cfg"),
        (32, (224, 224), None, (32, 32), "the images"),
        (32, (224, 224), (3, 224, 224), (224, 224), "option"),
    ],
)
def test_the_size_is_the_models_but_for_small_images(side, known, asked, expected, source) -> None:
    size, found = image_size(memory(count=1, size=side), 3, Preprocessing.said("cfg", size=known), asked)
    assert size == (3, *expected) and found.size == expected and found.sources["size"] == source
    left = known is not None and asked is None and known != expected
    assert [hint[:28] for hint in found.hints] == (["cfg says 224 x 224; the imag"] if left else [])
    if left:
        assert "--input-size 3,224,224" in found.hints[0]
