"""Images with labels, from folders, parquet or memory, as normalised batches that are the same on every run.

A batch depends only on (seed, epoch, index), never on the batches before it or on the number of workers;
therefore a resumed run starts at any batch without decoding the skipped ones.
"""

from __future__ import annotations

import io
import json
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from binarize.errors import UsageError

Augment = Literal["standard", "crop", "none"]

SMALL_IMAGE = 64
MAX_CACHE_BYTES = 2 << 30
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
_SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test"),
    "test": ("test", "val", "valid", "validation"),
}
_EVAL_RATIO = 256 / 224


class ImageDataset(ABC):
    """Images with one label each. `labels` is int64 [N], `classes` the names that labels index."""

    classes: tuple[str, ...]
    labels: Tensor

    def __init__(self, labels: Tensor, classes: Sequence[str], source: str) -> None:
        self.labels, self.classes, self.source = labels, tuple(classes), source
        self._cache: dict[tuple[int, int, int], Tensor] = {}
        if len(labels) == 0:
            raise UsageError("The data set is empty.", layer=source, hint="give images with labels")
        bad = torch.nonzero((labels < 0) | (labels >= len(self.classes)))
        if len(bad):
            row = int(bad[0])
            raise UsageError(
                f"The label {int(labels[row])} of {self.describe(row)} is out of range: there are "
                f"{len(self.classes)} classes, labels go from 0 to {len(self.classes) - 1}.",
                layer=source,
                hint="-1 marks unlabelled rows; use a labelled split" if int(labels[row]) < 0 else None,
            )

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        """Class number of one image."""
        return int(self.labels[index])

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """One image, uint8 [C, H, W]; RGB when it comes from a file.

        Raises:
            UsageError: the image cannot be decoded; names its file or row.
        """

    def describe(self, index: int) -> str:
        """The file or row of one image, for messages."""
        return f"row {index}"

    def fits(self, size: tuple[int, int, int]) -> bool:
        """Do all images, resized to [C, H, W], fit into the 2 GiB of decoded pixels that are kept?"""
        return len(self) * math.prod(size) <= MAX_CACHE_BYTES

    def pixels(self, size: tuple[int, int, int], rows: Tensor) -> Tensor:
        """Some images resized to [C, H, W], uint8 [len(rows), C, H, W]; the first call decodes all."""
        if size not in self._cache:
            self._cache.clear()
            self._cache[size] = self._decode_all(size)
        return self._cache[size][rows]

    def _decode_all(self, size: tuple[int, int, int]) -> Tensor:
        pixels = torch.empty((len(self), *size), dtype=torch.uint8)
        for index in range(len(self)):
            pixels[index] = _resized(_with_channels(self.image(index), size[0]), size[1:])
        return pixels


class TensorImages(ImageDataset):
    """Images in memory.

    Args:
        images: uint8 [N, C, H, W] with one or three channels.
        labels: integers [N], 0 <= label < len(classes).
    """

    def __init__(
        self, images: Tensor, labels: Tensor, classes: Sequence[str], source: str = "memory"
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise UsageError(
                f"Images must be uint8 [N, 1 or 3, H, W], not {images.dtype} {list(images.shape)}.",
                layer=source,
            )
        if labels.dim() != 1 or len(labels) != len(images) or labels.is_floating_point():
            raise UsageError(f"Labels must be {len(images)} integers.", layer=source)
        self.images = images
        super().__init__(labels.to(torch.int64), classes, source)

    def image(self, index: int) -> Tensor:
        return self.images[index]

    def _decode_all(self, size: tuple[int, int, int]) -> Tensor:
        return self.images if self.images.shape[1:] == size else super()._decode_all(size)


class FolderImages(ImageDataset):
    """An ImageFolder: one directory per class with the images somewhere below it."""

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        own = _class_folders(root)
        names = list(classes) if classes is not None else own
        if strange := sorted(set(own) - set(names)):
            raise UsageError(f"The class '{strange[0]}' is not among the training classes.", layer=str(root))
        self.files: list[Path] = []
        labels: list[int] = []
        for name in own:
            found = sorted(
                p for p in (root / name).rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file()
            )
            if not found:
                raise UsageError(
                    f"The class '{name}' has no images.",
                    layer=str(root),
                    hint=f"remove {root / name} or fill it",
                )
            self.files += found
            labels += [names.index(name)] * len(found)
        super().__init__(torch.tensor(labels, dtype=torch.int64), names, str(root))

    def image(self, index: int) -> Tensor:
        return _decode(self.files[index], self.describe(index))

    def describe(self, index: int) -> str:
        return str(self.files[index])


class ParquetImages(ImageDataset):
    """Parquet with encoded images (`image`: binary or struct with `bytes`) and integers (`label`)."""

    def __init__(self, files: Sequence[Path]) -> None:
        source = str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
        table = _read_parquet(files, source)
        self._encoded = _image_column(table, source)
        labels = _label_column(table, source)
        highest = int(labels.max()) if len(labels) else -1
        names = _class_names(table.schema.metadata) or [str(label) for label in range(highest + 1)]
        super().__init__(labels, names, source)

    def image(self, index: int) -> Tensor:
        return _decode(self._encoded[index].as_py(), f"{self.source}, {self.describe(index)}")


class Subset(ImageDataset):
    """Some images of another data set, which keeps the decoded pixels for all its subsets."""

    def __init__(self, parent: ImageDataset, indices: Tensor) -> None:
        self.parent, self.indices = parent, indices
        super().__init__(parent.labels[indices], parent.classes, parent.source)

    def image(self, index: int) -> Tensor:
        return self.parent.image(int(self.indices[index]))

    def describe(self, index: int) -> str:
        return self.parent.describe(int(self.indices[index]))

    def fits(self, size: tuple[int, int, int]) -> bool:
        return self.parent.fits(size)

    def pixels(self, size: tuple[int, int, int], rows: Tensor) -> Tensor:
        return self.parent.pixels(size, self.indices[rows])


def open_dataset(path: str | Path, *, split: str | None = None) -> ImageDataset:
    """Open images with labels.

    Args:
        path: a parquet file; a directory with `train*.parquet` and `val*` or `test*.parquet`; an ImageFolder
            (root/class/image), or one with splits (root/train/class/image and root/val or root/test).
        split: "train", "val" or "test" ("val" and "test" stand in for each other). None is everything where
            there are no splits, else the training split, or the only one.

    Raises:
        UsageError: nothing usable there, or no such split; says what is there.
    """
    root = Path(path).expanduser()
    if split is not None and split not in _SPLITS:
        raise UsageError(f"There is no split '{split}'.", hint=f"use one of {', '.join(_SPLITS)}")
    if not root.exists():
        raise UsageError("There is no such file or directory.", layer=str(path), hint="check --data")
    try:
        if root.is_file():
            return ParquetImages([_parquet_file(root)])
        found = _find_splits(root)
        if found:
            return _open_split(root, found, split)
        if split in ("val", "test"):
            raise UsageError(
                "The data set has no held-out split.",
                layer=str(root),
                hint="add a val/ folder or val.parquet, or hold part of the training images out",
            )
        whole = sorted(root.glob("*.parquet"))
        return ParquetImages(whole) if whole else FolderImages(root)
    except OSError as error:
        raise UsageError(f"The data cannot be read: {error}.", layer=str(path)) from error


def available_splits(path: str | Path) -> tuple[str, ...]:
    """Which of "train" and "val" the data at `path` is divided into; () if it is not."""
    root = Path(path).expanduser()
    found = _find_splits(root) if root.is_dir() else {}
    return tuple(name for name in ("train", "val") if name in found)


def split_train_val(dataset: ImageDataset, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Hold out `fraction` (0..1) of every class, at random by `seed`: (train, held out)."""
    if not 0 < fraction < 1:
        raise UsageError(f"The held-out fraction must lie between 0 and 1, not {fraction}.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(dataset), generator=generator)
    held = torch.zeros(len(dataset), dtype=torch.bool)
    for label in torch.unique(dataset.labels):
        members = order[dataset.labels[order] == label]
        held[members[: round(fraction * len(members))]] = True
    if not held.any() or held.all():
        raise UsageError(f"{len(dataset)} images are too few to hold out a fraction of {fraction}.")
    return Subset(dataset, torch.nonzero(~held).flatten()), Subset(dataset, torch.nonzero(held).flatten())


def check_classes(dataset: ImageDataset, num_outputs: int) -> None:
    """Refuse a data set whose number of classes is not the model's number of outputs.

    Raises:
        UsageError: the two differ.
    """
    if len(dataset.classes) != num_outputs:
        raise UsageError(
            f"The data set has {len(dataset.classes)} classes, the model {num_outputs} outputs.",
            layer=dataset.source,
            hint="use the data that the model was trained on, or a model with a head for this data",
        )


class Loader:
    """Batches of (float32 images [B, C, H, W] normalised, int64 labels [B]); made by `make_loader`."""

    def __init__(self, jobs: _Batches, start_batch: int, workers: int) -> None:
        self._jobs, self._start, self._workers = jobs, start_batch, workers

    def __len__(self) -> int:
        return max(0, len(self._jobs) - self._start)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for outcome in self._outcomes():
            if isinstance(outcome, UsageError):
                raise outcome
            yield outcome

    def _outcomes(self) -> Iterator[tuple[Tensor, Tensor] | UsageError]:
        wanted = range(self._start, len(self._jobs))
        if self._workers > 0 and len(wanted) and not self._jobs.cached:
            yield from DataLoader(self._jobs, batch_size=None, sampler=wanted, num_workers=self._workers)
        else:
            yield from (self._jobs[index] for index in wanted)


def make_loader(
    dataset: ImageDataset,
    *,
    input_size: tuple[int, int, int],
    batch_size: int,
    train: bool,
    seed: int,
    epoch: int,
    mean: Sequence[float],
    std: Sequence[float],
    workers: int = 0,
    start_batch: int = 0,
    augment: Augment = "standard",
) -> Loader:
    """One epoch of batches, equal for equal (seed, epoch) whatever `workers` and `start_batch` are.

    Inputs up to 64 pixels are decoded once into memory (up to 2 GiB) and augmented as whole batches: zero
    padding by an eighth of the side after normalisation, random crop, flip. Larger ones are decoded for each
    batch: random resized crop and flip, or resize and centre crop. In training, the order is shuffled and an
    incomplete last batch is left out.

    Args:
        input_size: (C, H, W) of the model's input; C is 1 or 3.
        mean, std: per channel, on the scale 0..1; one number serves all channels.
        workers: processes that decode large images.
        start_batch: the first batch to yield.
        augment: with `train`: "standard" crops and flips, "crop" never flips (digits), "none" neither.

    Raises:
        UsageError: a value cannot be used; while iterating, an image cannot be decoded.
    """
    if batch_size < 1 or start_batch < 0 or workers < 0 or min(input_size) < 1 or input_size[0] not in (1, 3):
        raise UsageError(
            f"Batches of {batch_size} from number {start_batch} by {workers} workers for input {input_size} "
            "cannot be made: sizes must be positive, nothing negative, channels 1 or 3."
        )
    if augment not in ("standard", "crop", "none"):
        raise UsageError(f"There is no augmentation '{augment}'.", hint="use standard, crop or none")
    scale = _normalisation(input_size[0], mean, std)
    jobs = _Batches(
        dataset, input_size, batch_size, (seed, epoch), scale, train, augment if train else "none"
    )
    return Loader(jobs, start_batch, workers)


class _Batches(Dataset[Any]):
    """Batch number k as a function of k alone, so that any process can make any batch."""

    def __init__(
        self,
        dataset: ImageDataset,
        size: tuple[int, int, int],
        batch_size: int,
        seeds: tuple[int, int],
        scale: tuple[Tensor, Tensor],
        shuffle: bool,
        augment: Augment,
    ) -> None:
        self.dataset, self.size, self.seeds, self.augment = dataset, size, seeds, augment
        self.mean, self.std = scale
        count = len(dataset)
        order = torch.randperm(count, generator=_generator(*seeds)) if shuffle else torch.arange(count)
        if shuffle and count > batch_size:
            order = order[: count - count % batch_size]
        self.batches = order.split(batch_size)
        self.small = max(size[1:]) <= SMALL_IMAGE
        self.cached = self.small and dataset.fits(size)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | UsageError:
        """One batch. An error is returned, not raised: worker processes would wrap it in their traceback."""
        try:
            rows = self.batches[index]
            generator = _generator(*self.seeds, index)
            images = self._small(rows, generator) if self.small else self._large(rows, generator)
            return images, self.dataset.labels[rows]
        except UsageError as error:
            return error

    def _small(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        if self.cached:
            pixels = self.dataset.pixels(self.size, rows)
        else:
            size = self.size
            pixels = torch.stack([_resized(self._image(row), size[1:]) for row in rows.tolist()])
        images = _normalised(pixels, self.mean, self.std)
        return (
            images
            if self.augment == "none"
            else _crop_and_flip(images, generator, self.augment == "standard")
        )

    def _large(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        transform = _transform(self.size[1:], self.augment)
        # torchvision's transforms draw from the global generator: seed it for this batch, then put it back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
            pixels = torch.stack([transform(self._image(row)) for row in rows.tolist()])
        return _normalised(pixels, self.mean, self.std)

    def _image(self, row: int) -> Tensor:
        return _with_channels(self.dataset.image(row), self.size[0])


def _generator(*numbers: int) -> torch.Generator:
    """A generator for a tuple of integers; SeedSequence keeps neighbouring tuples independent."""
    sequence = np.random.SeedSequence([number & 0xFFFFFFFFFFFFFFFF for number in numbers])
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _normalisation(channels: int, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    if len(mean) not in (1, channels) or len(std) not in (1, channels) or min(std) <= 0:
        raise UsageError(
            f"Mean {list(mean)} and std {list(std)} do not suit {channels} channels: give one number or one "
            "per channel, std above 0."
        )
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)


def _normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return pixels.float().sub_(mean * 255).div_(std * 255)


def _crop_and_flip(images: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    """Pad by H/8 with zeros, crop back at a random place per image, mirror half of them: [B, C, H, W]."""
    count, channels, height, width = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y))
    top = torch.randint(2 * pad_y + 1, (count, 1), generator=generator)
    left = torch.randint(2 * pad_x + 1, (count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    if flip:
        mirrored = torch.rand((count, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    index = places.view(count, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view(count, channels, height, width)


def _transform(size: tuple[int, int], augment: Augment) -> Any:
    from torchvision.transforms import v2

    if augment == "none":
        return v2.Compose([v2.Resize(round(max(size) * _EVAL_RATIO), antialias=True), v2.CenterCrop(size)])
    crop = v2.RandomResizedCrop(size, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()]) if augment == "standard" else crop


def _with_channels(image: Tensor, channels: int) -> Tensor:
    if image.shape[0] == channels:
        return image
    if channels == 3:
        return image.expand(3, -1, -1)
    # ITU-R BT.601 luma, as Pillow converts to grey.
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (image * weights).sum(0, keepdim=True).round().to(torch.uint8)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale so that the shorter side fits and crop the centre; images of the right size stay as they are."""
    if image.shape[1:] == size:
        return image
    from torchvision.transforms.v2 import functional as transforms

    ratio = max(size[0] / image.shape[1], size[1] / image.shape[2])
    scaled = [max(side, round(ratio * length)) for side, length in zip(size, image.shape[1:], strict=True)]
    return transforms.center_crop(transforms.resize(image, scaled, antialias=True), list(size))


def _decode(source: bytes | Path | None, where: str) -> Tensor:
    """Decode an image of any mode to RGB, uint8 [3, H, W]."""
    from PIL import Image

    try:
        if source is None:
            raise ValueError("there is no image data")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                pixels = np.array(_eight_bits(image).convert("RGB"))
    except Exception as error:  # Pillow's many decoders raise many types on damaged data
        raise UsageError(
            f"The image {where} cannot be decoded: {error}", layer=where, hint="remove or repair it"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _eight_bits(image: Any) -> Any:
    """16-bit grey to 8 bits: Pillow's own conversion clips everything above 255 to white."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 256).astype(np.uint8))


def _class_folders(root: Path) -> list[str]:
    names = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        raise UsageError(
            "No images here: neither class folders nor parquet files.",
            layer=str(root),
            hint="expected root/class/image.jpg, root/train/class/image.jpg or train.parquet",
        )
    return names


def _find_splits(root: Path) -> dict[str, list[Path]]:
    """The splits of a directory: split name to its parquet files, or to its one folder."""
    found: dict[str, list[Path]] = {}
    for split, names in _SPLITS.items():
        for name in names:
            files = sorted(root.glob(f"{name}*.parquet"))
            folder = [root / name] if (root / name).is_dir() else []
            if files or folder:
                found[split] = files or folder
                break
    return found


def _open_split(root: Path, found: dict[str, list[Path]], split: str | None) -> ImageDataset:
    chosen = split or next(iter(found))
    if chosen not in found:
        have = ", ".join(path.name for path in next(iter(found.values())))
        raise UsageError(f"There is no split '{chosen}' here, only {have}.", layer=str(root))
    files = found[chosen]
    if not files[0].is_dir():
        return ParquetImages(files)
    # Labels must mean the same in every split, also where one lacks a class.
    training = found.get("train", files)
    return FolderImages(files[0], _class_folders(training[0]) if training[0].is_dir() else None)


def _parquet_file(path: Path) -> Path:
    with path.open("rb") as stream:
        if stream.read(4) == b"PAR1":
            return path
    raise UsageError(
        "Not a parquet file.",
        layer=str(path),
        hint="give parquet with image and label, or a directory of images",
    )


def _read_parquet(files: Sequence[Path], source: str) -> Any:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        needed = sum(_uncompressed(parquet.ParquetFile(file)) for file in files)
        if needed > 0.8 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise UsageError(
                f"The parquet data takes {needed >> 20} MiB, more than this machine's memory holds.",
                layer=source,
                hint="unpack the images into a directory with one folder per class",
            )
        return pyarrow.concat_tables([parquet.read_table(file, partitioning=None) for file in files])
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0][:200]
        raise UsageError(
            f"The parquet data cannot be read: {reason}.", layer=source, hint="download it again"
        ) from error


def _uncompressed(file: Any) -> int:
    return sum(file.metadata.row_group(k).total_byte_size for k in range(file.metadata.num_row_groups))


def _image_column(table: Any, source: str) -> Any:
    import pyarrow.types as types

    column = table[_column(table, ("image", "img"), source)]
    if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        import pyarrow.compute as compute

        column = compute.struct_field(column, "bytes")
    if not (types.is_binary(column.type) or types.is_large_binary(column.type)):
        raise UsageError(
            f"The image column holds {column.type}, not encoded images.",
            layer=source,
            hint="it must be binary, or a struct with binary bytes, of JPEG or PNG data",
        )
    return column


def _label_column(table: Any, source: str) -> Tensor:
    import pyarrow.types as types

    name = _column(table, ("label", "labels"), source)
    column = table[name]
    if not types.is_integer(column.type):
        raise UsageError(
            f"The column '{name}' holds {column.type}, not integers.",
            layer=source,
            hint="number the classes from 0 and put their names into the Hugging Face features",
        )
    if column.null_count:
        raise UsageError(f"The column '{name}' has {column.null_count} empty labels.", layer=source)
    return torch.from_numpy(column.to_numpy().astype(np.int64))


def _column(table: Any, names: Sequence[str], source: str) -> str:
    for name in names:
        if name in table.column_names:
            return name
    raise UsageError(
        f"There is no column '{names[0]}', only {', '.join(table.column_names) or 'none at all'}.",
        layer=source,
        hint=f"rename the column with the data to '{names[0]}'",
    )


def _class_names(metadata: dict[bytes, bytes] | None) -> list[str] | None:
    """Class names of the Hugging Face schema metadata, None where there are none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label" if "label" in features else "labels"]["names"]
        values = list(names.values()) if isinstance(names, dict) else list(names)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return [str(value) for value in values] or None
