"""Single images: decoding, channels, size."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from binarize.errors import UsageError


def decode(source: bytes | Path | None, where: str) -> Tensor:
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
        reason = re.sub(r" (<_io\.BytesIO .*>|'.*')$", "", str(error))  # Pillow's name of what `layer` names better
        raise UsageError(f"the image cannot be decoded: {reason}", layer=where, hint="remove or repair it") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _eight_bits(image: Any) -> Any:
    """16-bit grey, wider integers and floats to 8 bits: Pillow's own conversion clips everything above 255 to white.

    What has no range of its own is in [0, 1] (floats), in [0, 255], or else in [0, 65535], whatever its values fit.
    """
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    highest = values.max(initial=0)
    if image.mode.startswith("I;16") or image.format == "PNG" or highest > 255:
        values = values // 256
    elif image.mode == "F" and highest <= 1:
        values = values * 255
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def with_channels(image: Tensor, channels: int) -> Tensor:
    if image.shape[0] == channels:
        return image
    if channels == 3:
        return image.expand(3, -1, -1)
    # ITU-R BT.601 luma, as Pillow converts to grey.
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (image * weights).sum(0, keepdim=True).round().to(torch.uint8)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale so that the shorter side fits and crop the centre; images of the right size stay as they are."""
    if image.shape[1:] == size:
        return image
    from torchvision.transforms.v2 import functional as transforms

    ratio = max(size[0] / image.shape[1], size[1] / image.shape[2])
    scaled = [max(side, round(ratio * length)) for side, length in zip(size, image.shape[1:], strict=True)]
    return transforms.center_crop(transforms.resize(image, scaled, antialias=True), list(size))
