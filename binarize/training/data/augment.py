"""Normalisation and random crops and flips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.errors import UsageError

Augment = Literal["standard", "crop", "none"]


def normalisation(channels: int, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    if len(mean) not in (1, channels) or len(std) not in (1, channels) or min(std) <= 0:
        raise UsageError(
            f"Mean {list(mean)} and std {list(std)} do not suit {channels} channels: give one number or one "
            "per channel, std above 0."
        )
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return pixels.float().sub_(mean * 255).div_(std * 255)


def crop_and_flip(images: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
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


class _Cover:
    """Scales an image so that it covers `size` and its margin: for a square its shorter side, as torchvision does."""

    def __init__(self, size: tuple[int, int], crop_pct: float, interpolation: Any) -> None:
        self.size = tuple(round(side / crop_pct) for side in size)
        self.interpolation = interpolation

    def __call__(self, image: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional as transforms

        (height, width), (rows, columns) = self.size, image.shape[-2:]
        if height * columns >= width * rows:
            scaled = [height, max(width, height * columns // rows)]
        else:
            scaled = [max(height, width * rows // columns), width]
        return transforms.resize(image, scaled, self.interpolation, antialias=True)


def transform_for(
    size: tuple[int, int], augment: Augment, crop_pct: float = 0.875, interpolation: str = "bilinear"
) -> Any:
    from torchvision.transforms import v2

    scaling = v2.InterpolationMode(interpolation)
    if augment == "none":
        return v2.Compose([_Cover(size, crop_pct, scaling), v2.CenterCrop(size)])
    crop = v2.RandomResizedCrop(size, interpolation=scaling, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()]) if augment == "standard" else crop
