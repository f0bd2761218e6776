"""The float model in static int8: the other thing that a binary file is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from binarize.bench.sessions import batch_of, input_shape, open_session
from binarize.errors import UnsupportedModelError, UsageError
from binarize.exporting.emit import DOMAIN, write_onnx
from binarize.exporting.quantize import batches_of, quantize_all
from binarize.progress import Listener, silent

RANDOM_IMAGES = 8
"""How many made-up images set the ranges when there is no data: enough for speed, useless for accuracy."""


def int8_onnx(
    float_file: str | Path, path: str | Path, images: np.ndarray | None = None, progress: Listener = silent
) -> int:
    """Write the float ONNX model at `float_file` as static QDQ int8 (uint8 activations); returns the file's bytes.

    Args:
        path: the file to write.
        images: [N, C, H, W], normalised; they set the activations' ranges. By default random ones.

    Raises:
        UnsupportedModelError: the model has several inputs, or nothing in it can be quantized.
        UsageError: there are fewer images than the model takes at a time.
    """
    model = onnx.load(float_file)
    if any(node.domain == DOMAIN for node in model.graph.node):
        raise UnsupportedModelError(
            "the file is a binary model; int8 is made from the float one",
            layer=str(float_file),
            hint="give the float model with --against",
        )
    session = open_session(float_file, 1)
    shape, size = input_shape(session), batch_of(session)
    if images is None:
        images = np.random.default_rng(0).standard_normal((max(RANDOM_IMAGES, size), *shape[1:])).astype(np.float32)
    if images.shape[1:] != shape[1:]:
        raise UnsupportedModelError(
            f"the images are {list(images.shape[1:])}, the model takes {list(shape[1:])}", layer=str(float_file)
        )
    if len(images) < size:
        raise UsageError(
            f"the model takes {size} images at a time, and there are {len(images)}", hint="give more --data"
        )
    feeds = batches_of({session.get_inputs()[0].name: images[: len(images) // size * size]}, size)
    return write_onnx(quantize_all(model, feeds, progress), path)
