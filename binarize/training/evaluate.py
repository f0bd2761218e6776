"""Top-1 accuracy of a module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize.errors import UnsupportedModelError
from binarize.nn.modules import evaluating
from binarize.progress import Listener, ProgressEvent, silent


def logits_of(output: object) -> Tensor:
    """The class scores [N, K] in a model's output, or UnsupportedModelError if it is no classifier.

    Of several outputs they are the one called `logits`, else the first, as where auxiliary heads follow.
    """
    if isinstance(output, Tensor) and output.dim() == 2:
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    first = output[0] if isinstance(output, tuple | list) and output else None
    if (found := first if named is None else named) is not None:
        return logits_of(found)
    what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise UnsupportedModelError(
        f"the model gives {what}, not class scores [N, classes]",
        hint="fine-tuning and accuracy are for classifiers; train other models with a loop of your own on "
        "binarize.apply(model)",
    )


@torch.no_grad()
def evaluate(
    module: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    total: int = 0,
    progress: Listener = silent,
) -> dict[str, float]:
    """Top-1 accuracy (0 to 1) and mean cross entropy of `module` in eval mode on `batches` of (images, labels)."""
    device = next(module.parameters()).device
    right, loss, seen = 0, 0.0, 0
    with evaluating(module):
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            logits = logits_of(module(images)).float()
            right += int((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            seen += len(labels)
            progress(ProgressEvent("evaluating", seen, total, {"top-1": f"{right / seen:.2%}"}))
    return {"top1": right / max(seen, 1), "loss": loss / max(seen, 1), "images": seen}
