"""The smallest inputs that a model runs on, found by trying, and what its training step needs beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from binarize.errors import UsageError

# Sizes of square images; ImageNet models keep a map of 2 x 2 at 64, CIFAR models are often built for just 32.
_SIZES = (64, 32, 96, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)
# Frames and size of video clips.
_CLIPS = ((8, 64), (16, 64), (16, 112), (16, 128), (16, 224))
_BATCH = 2
SMALL_IMAGE = (128, 160)
"""Rows and columns of a detector's images."""


def smallest_inputs(model: nn.Module, family: str) -> tuple[Any, ...]:
    """Random inputs with a batch of two on the model's device, the smallest of a fixed list that `model` runs on.

    Raises:
        UsageError: it runs on none.
    """
    was_training = model.training
    model.eval()
    last: Exception | None = None
    device = next(model.parameters(), torch.zeros(1)).device
    for candidate in _candidates(model, family):
        inputs = tree_map_only(Tensor, lambda x: x.to(device), candidate)
        try:
            with torch.no_grad():
                model(*inputs)
        except Exception as error:
            last = error
            continue
        model.train(was_training)
        return inputs
    raise UsageError(f"the model runs on none of the inputs tried: {last}")


def training_inputs(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """`inputs`, and for detectors a target for each image: one box with its label, mask and keypoints."""
    if not isinstance(inputs[0], list):
        return inputs
    return (*inputs, [_target(image) for image in inputs[0]])


def describe(inputs: tuple[Any, ...]) -> str:
    """Shapes in words: `2x3x64x64`; a detector's list of images as `2 of 3x128x160`."""
    parts = []
    for value in inputs:
        if isinstance(value, list):
            parts.append(f"{len(value)} of {_shape(value[0])}")
        else:
            parts.append(_shape(value))
    return ", ".join(parts)


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape)


def _candidates(model: nn.Module, family: str) -> Iterator[tuple[Any, ...]]:
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)), 3)
    if family.startswith("detection."):
        yield ([_random(3, *SMALL_IMAGE) for _ in range(_BATCH)],)
    elif family.startswith("optical_flow."):
        yield _random(_BATCH, 3, 128, 128), _random(_BATCH, 3, 128, 128)
    elif family.startswith("video."):
        yield from ((_random(_BATCH, channels, frames, size, size),) for frames, size in _CLIPS)
    else:
        yield from ((_random(_BATCH, channels, size, size),) for size in _SIZES)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _target(image: Tensor) -> dict[str, Tensor]:
    height, width = image.shape[-2:]
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    box = torch.tensor([[width / 4, height / 4, width / 2, height / 2]])
    keypoints = torch.tensor([[width / 3, height / 3, 1.0]]).repeat(17, 1)[None]
    return {"boxes": box, "labels": torch.tensor([1]), "masks": mask, "keypoints": keypoints}
