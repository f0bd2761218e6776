"""`sign` and the gradients that stand in for its own, which is zero almost everywhere.

`sign(x) = +1 if x > 0 else -1`: strictly greater, so that a feature which passed a ReLU still carries the sign
of what went in; `-0.0` counts as 0 and NaN gives -1. This is never `torch.sign`, which has a third value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def hard_sign(x: Tensor) -> Tensor:
    """`+1 where x > 0, -1 elsewhere`, in `x`'s dtype and without a gradient."""
    return torch.where(x > 0, 1.0, -1.0).to(x.dtype)


class ApproxSign(torch.autograd.Function):
    """Sign whose gradient is that of a piecewise quadratic: `2 - 2|x|` on (-1, 1), 0 outside.

    Source: Bi-Real Net (Liu et al., ECCV 2018), section 3.3.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return hard_sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * (2.0 - 2.0 * x.abs()).clamp_min(0.0)


class ClipSign(torch.autograd.Function):
    """Sign with the clipped straight-through estimator: the gradient passes where `|x| <= 1`.

    Source: Binarized Neural Networks (Courbariaux et al., 2016).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return hard_sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1.0)


SIGN_GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "approx": ApproxSign.apply,
    "clip": ClipSign.apply,
}
"""The activation gradients a recipe may name (`surgery.activation_gradient`)."""
