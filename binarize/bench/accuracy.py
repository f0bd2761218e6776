"""Top-1 accuracy and throughput of a module or a session on labelled batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from binarize.bench.sessions import float_type
from binarize.errors import UnsupportedModelError
from binarize.progress import Listener, ProgressEvent, silent

if TYPE_CHECKING:
    from binarize.training.data import ImageDataset

Batches = Iterable[tuple[Any, Any]]
"""(images [N, C, H, W], labels [N]) as torch tensors."""


@dataclass(frozen=True)
class Accuracy:
    """How often a model is right.

    Attributes:
        kind: `float`, `binary` or `onnx`.
        top1: 0 to 1.
        images: how many were tried.
        images_per_second: of the model alone, without decoding.
    """

    kind: str
    top1: float
    images: int
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def onnx_accuracy(session: Any, batches: Batches, dataset: ImageDataset, progress: Listener = silent) -> Accuracy:
    """Of an ONNX Runtime `session` whose first output is class scores, on the `batches` of `dataset`.

    A session that takes a fixed number of images at a time gets that many, blank ones where there are fewer.

    Raises:
        UsageError: the labels of `dataset` do not count the session's classes.
        UnsupportedModelError: it takes no floats, or gives no class scores or NaN.
    """
    entry = session.get_inputs()[0]
    kind = float_type(entry)
    fixed = entry.shape[0] if isinstance(entry.shape[0], int) else None

    def scores(images: Any) -> np.ndarray:
        size = fixed or len(images)
        blank = np.zeros((-len(images) % size, *images.shape[1:]), np.float32)
        whole = np.concatenate([images.numpy(), blank]).astype(kind, copy=False)
        parts = np.split(whole, len(whole) // size)
        return np.concatenate([session.run(None, {entry.name: part})[0] for part in parts])[: len(images)]

    return _measure("onnx", scores, batches, dataset, progress)


def module_accuracy(
    kind: str, module: Any, batches: Batches, dataset: ImageDataset, progress: Listener = silent
) -> Accuracy:
    """Of a torch `module`, in eval mode; see `onnx_accuracy`."""
    import torch

    from binarize.training.evaluate import logits_of

    def scores(images: Any) -> np.ndarray:
        with torch.no_grad():
            return logits_of(module(images)).float().numpy()

    module.eval()
    return _measure(kind, scores, batches, dataset, progress)


def _measure(
    kind: str, scores: Callable[[Any], np.ndarray], batches: Batches, dataset: ImageDataset, progress: Listener
) -> Accuracy:
    from binarize.training.data import check_labels

    right = seen = 0
    seconds = 0.0
    for images, labels in batches:
        started = time.perf_counter()
        found = scores(images)
        seconds += time.perf_counter() - started
        if found.ndim != 2:
            raise UnsupportedModelError(f"the {kind} model gives {list(found.shape)}, not class scores [N, classes]")
        if np.isnan(found).any():  # whose largest would be the first
            raise UnsupportedModelError(f"the {kind} model gives NaN", hint="its weights may have been damaged")
        if not seen:
            check_labels(dataset, found.shape[1])
        right += int((found.argmax(1) == labels.numpy()).sum())
        seen += len(labels)
        progress(ProgressEvent("evaluating", seen, len(dataset), {"top-1": f"{right / seen:.2%}"}))
    return Accuracy(kind, right / max(seen, 1), seen, seen / max(seconds, 1e-9))
