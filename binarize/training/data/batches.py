"""Normalised batches that are the same on every run.

A batch depends only on (seed, epoch, index), never on the batches before it or on the number of workers;
therefore a resumed run starts at any batch without decoding the skipped ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from binarize.errors import UsageError
from binarize.preprocessing import SMALL_IMAGE
from binarize.training.data.augment import Augment, crop_and_flip, normalisation, normalised, transform_for
from binarize.training.data.dataset import ImageDataset
from binarize.training.data.pixels import resized, with_channels


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
            # A generator of its own, or starting the workers would draw from the global one, which dropout uses.
            own = torch.Generator()
            yield from DataLoader(self._jobs, batch_size=None, sampler=wanted, num_workers=self._workers, generator=own)
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
    crop_pct: float = 0.875,
    interpolation: str = "bilinear",
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
        crop_pct: of larger inputs without augmentation: their side over the scaled image's.
        interpolation: of larger inputs: "bilinear" or "bicubic".

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
    scale = normalisation(input_size[0], mean, std)
    augment = augment if train else "none"
    transform = partial(transform_for, input_size[1:], augment, crop_pct, interpolation)
    jobs = _Batches(dataset, input_size, batch_size, (seed, epoch), scale, train, augment, transform)
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
        transform: Callable[[], Any],
    ) -> None:
        self.dataset, self.size, self.seeds, self.augment, self.transform = dataset, size, seeds, augment, transform
        self.mean, self.std = scale
        count = len(dataset)
        order = torch.randperm(count, generator=generator_for(*seeds)) if shuffle else torch.arange(count)
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
            generator = generator_for(*self.seeds, index)
            images = self._small(rows, generator) if self.small else self._large(rows, generator)
            return images, self.dataset.labels[rows]
        except UsageError as error:
            return error

    def _small(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        if self.cached:
            pixels = self.dataset.pixels(self.size, rows)
        else:
            size = self.size
            pixels = torch.stack([resized(self._image(row), size[1:]) for row in rows.tolist()])
        images = normalised(pixels, self.mean, self.std)
        return images if self.augment == "none" else crop_and_flip(images, generator, self.augment == "standard")

    def _large(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        transform = self.transform()
        # torchvision's transforms draw from the global generator: seed it for this batch, then put it back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
            pixels = torch.stack([transform(self._image(row)) for row in rows.tolist()])
        return normalised(pixels, self.mean, self.std)

    def _image(self, row: int) -> Tensor:
        return with_channels(self.dataset.image(row), self.size[0])


def generator_for(*numbers: int) -> torch.Generator:
    """A generator for a tuple of integers; SeedSequence keeps neighbouring tuples independent."""
    sequence = np.random.SeedSequence([number & 0xFFFFFFFFFFFFFFFF for number in numbers])
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
