"""Calibration: thresholds and batch norms of a fresh binary module, from a few images and no gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from binarize.errors import UsageError
from binarize.nn import BinaryConv
from binarize.nn.modules import evaluating
from binarize.passes.insert_batch_norm import MARK as INSERTED_AFTER

Batch = Tensor | tuple[Any, ...]
"""What a model that takes one tensor takes, or all that one takes which takes more."""


@torch.no_grad()
def calibrate(module: nn.Module, teacher: nn.Module, batches: Sequence[Batch], *, threshold: str = "median") -> None:
    """Set thresholds, inserted batch norms and BN statistics from `batches`, mostly of images `[N, C, H, W]`.

    Each batch sets every conv's threshold, before the conv runs, to the mean of the medians of its input channels
    so far, so that later layers see what they will see. Batch norms that surgery inserted start with the scale and
    offset of the float conv they replace, measured on `teacher` and the first batch.

    Raises:
        UsageError: there is no batch, one is neither tensor nor tuple, or `module` or `teacher` does not run on one;
            then `module` is as it was.
    """
    hint = "give tensors, or tuples of all that the model takes; of a loader: [images for images, labels in loader]"
    if not batches:
        raise UsageError("there is nothing to calibrate with", hint="give one batch of training images, or several")
    other = next((batch for batch in batches if not isinstance(batch, Tensor | tuple)), None)
    if other is not None:
        raise UsageError(f"a batch to calibrate with is a {type(other).__name__}", hint=hint)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        _match_float_statistics(module, teacher, batches[0])
        reestimate_batch_norm(module, batches, before_conv=_FitToInput(median=threshold == "median"))
    except Exception as error:  # whatever the model's code raises; the statistics that the module had are gone by then
        for name, value in module.state_dict().items():
            value.copy_(before[name])
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"the model does not run on a batch to calibrate with: {reason}", hint=hint) from error


class _FitToInput:
    """Keeps each conv's threshold at the mean of its input channels' medians over the batches seen, if wanted, and
    shows the input binarizer what it will meet."""

    def __init__(self, *, median: bool) -> None:
        self.median = median
        self.seen: Counter[BinaryConv] = Counter()

    def __call__(self, conv: BinaryConv, x: Tensor) -> None:
        if self.median:
            median = x.transpose(0, 1).flatten(1).median(dim=1).values
            self.seen[conv] += 1
            conv.threshold.lerp_(median, 1 / self.seen[conv])
        conv.binarize_input.observe(x - conv.threshold.view(1, -1, *[1] * (x.dim() - 2)))


def _match_float_statistics(module: nn.Module, teacher: nn.Module, batch: Batch) -> None:
    """Inserted batch norm of conv `p`: weight and bias become the std and mean of float conv `p`'s output.

    What became a conv may have been a linear layer, whose channels are last.
    """
    inserted = {
        str(getattr(norm, INSERTED_AFTER)): norm
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and hasattr(norm, INSERTED_AFTER)
    }
    floats = dict(teacher.named_modules())

    def record(norm: _BatchNorm) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            channels = -1 if isinstance(conv, nn.Linear) else 1
            values = output.movedim(channels, 0).flatten(1)
            norm.weight.copy_(values.std(dim=1))
            norm.bias.copy_(values.mean(dim=1))

        return hook

    hooks = [floats[n].register_forward_hook(record(norm)) for n, norm in inserted.items() if n in floats]
    try:
        if hooks:
            with evaluating(teacher):
                _forward(teacher, batch)
    finally:  # a hook that stays would write to the norms again whenever the float model runs
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def reestimate_batch_norm(
    module: nn.Module,
    batches: Iterable[Batch],
    *,
    before_conv: Callable[[BinaryConv, Tensor], None] | None = None,
) -> None:
    """Replace every batch norm's running statistics by the plain average over `batches`."""
    with _hooks(module, before_conv), _averaging_norms(module):
        for batch in batches:
            _forward(module, batch)


@contextmanager
def _hooks(module: nn.Module, before_conv: Callable[[BinaryConv, Tensor], None] | None) -> Iterator[None]:
    def hook(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(conv, BinaryConv) and before_conv is not None
        before_conv(conv, inputs[0])

    convs = [m for m in module.modules() if isinstance(m, BinaryConv)] if before_conv else []
    handles = [conv.register_forward_pre_hook(hook) for conv in convs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _averaging_norms(module: nn.Module) -> Iterator[None]:
    """Batch norms, and nothing else, in training mode with a cumulative average, from fresh statistics."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None: cumulative average
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for layer, training in modes:
            layer.training = training


def _forward(module: nn.Module, batch: Batch) -> None:
    device = next(module.parameters()).device
    module(*tree_map_only(Tensor, lambda x: x.to(device), batch if isinstance(batch, tuple) else (batch,)))
