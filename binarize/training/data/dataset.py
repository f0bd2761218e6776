"""What a data set is, images in memory, and parts of a data set."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from binarize.errors import UsageError
from binarize.preprocessing import SMALL_IMAGE, Preprocessing, options_for
from binarize.training.data.pixels import resized, with_channels

MAX_CACHE_BYTES = 2 << 30


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
            pixels[index] = resized(with_channels(self.image(index), size[0]), size[1:])
        return pixels


class TensorImages(ImageDataset):
    """Images in memory.

    Args:
        images: uint8 [N, C, H, W] with one or three channels.
        labels: integers [N], 0 <= label < len(classes).
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str], source: str = "memory") -> None:
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


def check_labels(dataset: ImageDataset, num_outputs: int) -> None:
    """Refuse a data set whose labels do not count the model's outputs, to measure accuracy on.

    Fewer classes than outputs are fine only where classes are numbers, as in a part of a data set without names: where
    they are named, one that is missing gives those behind it another number.

    Raises:
        UsageError: accuracy would be that of other classes.
    """
    numbers = list(dataset.classes) == [str(number) for number in range(len(dataset.classes))]
    if not (numbers and len(dataset.classes) <= num_outputs):
        check_classes(dataset, num_outputs)


def image_size(
    dataset: ImageDataset,
    channels: int,
    known: Preprocessing,
    asked: tuple[int, ...] | None = None,
    *,
    asker: str = "option",
) -> tuple[tuple[int, int, int], Preprocessing]:
    """(C, H, W) that a model is to see, and `known` with it.

    As asked; else as `known` says, unless the images are small and that is not: CIFAR nets often come from builders of
    larger ones. Else the images' own size if they are small, 224 x 224 if not.

    Args:
        channels: of the model's input.
        asked: (C, H, W) that were asked for, by `asker`.

    Raises:
        UsageError: what is asked is not the size of an image.
    """
    if asked is not None:
        if len(asked) != 3:
            raise UsageError(f"input size {asked} is not C,H,W", hint="data is made of images; give their three sizes")
        return (asked[0], asked[1], asked[2]), known.sized(asked[1:], asker)
    _, height, width = map(int, dataset.image(0).shape)
    small = max(height, width) <= SMALL_IMAGE
    if known.size is not None and (not small or max(known.size) <= SMALL_IMAGE):
        return (channels, *known.size), known
    rows, columns = (height, width) if small else (224, 224)
    found = known.sized((rows, columns), "the images" if small else "default")
    if known.size is not None:
        found = found.hinted(
            f"{known.sources['size']} says {known.size[0]} x {known.size[1]}; the images are small and stay as they "
            f"are ({options_for({'size': known.size})} scales them)."
        )
    return (channels, rows, columns), found
