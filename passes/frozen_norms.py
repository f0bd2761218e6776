"""Batch norms whose numbers are buffers, as detectors have them (torchvision's and others' `FrozenBatchNorm2d`)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from binarize.nn.modules import hooks_of

_BUFFERS = {"weight", "bias", "running_mean", "running_var"}
_EPSILON = 1e-5
"""Of those that do not say."""


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """Whether `module` has a batch norm's four tensors, all of them buffers, and nothing else."""
    if isinstance(module, _BatchNorm) or module._parameters or module._modules:
        return False
    shapes = {buffer.shape for buffer in module._buffers.values() if buffer is not None}
    return set(module._buffers) == _BUFFERS and len(shapes) == 1 and len(next(iter(shapes))) == 1


def batch_norm_of(module: nn.Module) -> nn.BatchNorm2d | None:
    """The batch norm in eval mode that a frozen one is, on its own tensors; None if it computes something else."""
    buffers = {name: value for name, value in module._buffers.items() if value is not None}
    mean = buffers["running_mean"]
    norm = nn.BatchNorm2d(len(mean), eps=getattr(module, "eps", _EPSILON), device=mean.device, dtype=mean.dtype).eval()
    norm.running_mean, norm.running_var = buffers["running_mean"], buffers["running_var"]
    norm.weight, norm.bias = nn.Parameter(buffers["weight"]), nn.Parameter(buffers["bias"])
    x = torch.randn(2, len(mean), 3, 3, device=mean.device, dtype=mean.dtype)
    with torch.no_grad():
        try:
            same = x.is_meta or torch.allclose(module(x), norm(x), rtol=1e-3, atol=1e-4)
        except Exception:
            return None
    return norm if same else None


def thaw(module: nn.Module) -> bool:
    """Turn the object `module`, a frozen batch norm, into a trainable one with the same numbers; whether it did."""
    norm = batch_norm_of(module)
    if norm is None:
        return False
    module._buffers.clear()
    state = vars(norm) | hooks_of(module)
    module.__class__ = nn.BatchNorm2d
    object.__setattr__(module, "__dict__", vars(module) | state | {"training": module.training})
    return True
