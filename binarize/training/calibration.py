"""Calibration: thresholds and batch norms of a fresh binary module, from a few images and no gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from binarize.nn import BinaryConv2d
from binarize.passes.insert_batch_norm import MARK as INSERTED_AFTER


@torch.no_grad()
def calibrate(module: nn.Module, teacher: nn.Module, images: Tensor, *, threshold: str = "median") -> None:
    """Set thresholds, inserted batch norms and BN statistics from `images` `[N, C, H, W]`.

    One forward pass sets each conv's threshold to its input channels' medians before the conv runs, so that later
    layers see what they will see. Batch norms that surgery inserted start with the scale and offset of the float
    conv they replace, measured on `teacher`.
    """
    _match_float_statistics(module, teacher, images)
    reestimate_batch_norm(module, [images], before_conv=_set_median if threshold == "median" else None)


def _set_median(conv: BinaryConv2d, x: Tensor) -> None:
    conv.threshold.copy_(x.transpose(0, 1).flatten(1).median(dim=1).values)


def _match_float_statistics(module: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """Inserted batch norm of conv `p`: weight and bias become the std and mean of float conv `p`'s output."""
    inserted = {
        str(getattr(norm, INSERTED_AFTER)): norm
        for norm in module.modules()
        if isinstance(norm, nn.BatchNorm2d) and hasattr(norm, INSERTED_AFTER)
    }
    floats = dict(teacher.named_modules())

    def record(norm: nn.BatchNorm2d) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            norm.weight.copy_(output.std(dim=(0, 2, 3)))
            norm.bias.copy_(output.mean(dim=(0, 2, 3)))

        return hook

    hooks = [floats[n].register_forward_hook(record(norm)) for n, norm in inserted.items() if n in floats]
    if hooks:
        _forward(teacher.eval(), images)
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def reestimate_batch_norm(
    module: nn.Module,
    batches: Iterable[Tensor],
    *,
    before_conv: Callable[[BinaryConv2d, Tensor], None] | None = None,
) -> None:
    """Replace every batch norm's running statistics by the plain average over `batches` of images."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None: cumulative average
    with _hooks(module, before_conv), _train_mode(module):
        for images in batches:
            _forward(module, images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@contextmanager
def _hooks(module: nn.Module, before_conv: Callable[[BinaryConv2d, Tensor], None] | None) -> Iterator[None]:
    def hook(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(conv, BinaryConv2d) and before_conv is not None
        before_conv(conv, inputs[0])

    convs = [m for m in module.modules() if isinstance(m, BinaryConv2d)] if before_conv else []
    handles = [conv.register_forward_pre_hook(hook) for conv in convs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _train_mode(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.train()
    try:
        yield
    finally:
        module.train(training)


def _forward(module: nn.Module, images: Tensor) -> None:
    device = next(module.parameters()).device
    module(images.to(device, memory_format=torch.channels_last) if images.dim() == 4 else images.to(device))
