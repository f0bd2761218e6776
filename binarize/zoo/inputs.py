"""The smallest inputs that a model runs on, found by trying, and what its training step needs beside them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import UsageError
from binarize.example_inputs import BATCH, channel_guesses, dimensions, evaluate, first_that_runs, random_tensor

# ImageNet models keep a map of 2 x 2 at 64, CIFAR models are often built for just 32.
_IMAGES = (64, 32, 96, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)
_CLIPS = ((8, 64), (16, 64), (16, 112), (16, 128), (16, 224))
_SIZES: dict[int, list[tuple[int, ...]]] = {
    1: [(256,), (1024,), (4096,), (16384,)],
    2: [(size, size) for size in _IMAGES],
    3: [(frames, size, size) for frames, size in _CLIPS],
}
"""What to try, by the dimensions of the first conv."""

SMALL_IMAGE = (128, 160)
"""Rows and columns of a detector's images."""


def smallest_inputs(model: nn.Module, family: str) -> tuple[Any, ...]:
    """Random inputs with a batch of two on the model's device, the smallest of a fixed list that `model` runs on.

    In eval and in train mode, if there are such: auxiliary heads may need larger maps than the rest.

    Raises:
        UsageError: it runs on none.
    """
    candidates = list(_candidates(model, family))
    inputs, why_not = first_that_runs(model, candidates, _evaluate_and_train)
    if inputs is None:
        inputs, why_not = first_that_runs(model, candidates)
    if inputs is None:
        raise UsageError(f"the model runs on none of the inputs tried: {why_not}")
    return inputs


def _evaluate_and_train(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    evaluate(model, inputs)
    with torch.no_grad():
        copy.deepcopy(model).train()(*training_inputs(inputs))  # a copy: training changes running statistics


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
    if family.startswith("detection."):
        yield ([random_tensor(model, 3, *SMALL_IMAGE) for _ in range(BATCH)],)
    elif family.startswith("optical_flow."):
        yield random_tensor(model, BATCH, 3, 128, 128), random_tensor(model, BATCH, 3, 128, 128)
    else:
        for size, channels in product(_SIZES[dimensions(model)], channel_guesses(model)):
            yield (random_tensor(model, BATCH, channels, *size),)


def _target(image: Tensor) -> dict[str, Tensor]:
    height, width = image.shape[-2:]
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    box = torch.tensor([[width / 4, height / 4, width / 2, height / 2]])
    keypoints = torch.tensor([[width / 3, height / 3, 1.0]]).repeat(17, 1)[None]
    return {"boxes": box, "labels": torch.tensor([1]), "masks": mask, "keypoints": keypoints}
