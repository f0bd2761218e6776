"""`sign` and the gradients that stand in for its own, which is zero almost everywhere.

`sign(x) = +1 if x > 0 else -1`: strictly greater, so that a feature which passed a ReLU still carries the sign
of what went in; `-0.0` counts as 0 and NaN gives -1. This is never `torch.sign`, which has a third value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def hard_sign(x: Tensor) -> Tensor:
    """`+1 where x > 0, -1 elsewhere`, in `x`'s dtype and without a gradient.

    Not `torch.where(x > 0, 1.0, -1.0)`: inside an `autograd.Function`, compiled by torch 2.11, all gradients became 0.
    """
    return (x > 0).to(x.dtype) * 2 - 1


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
    """Sign with the clipped straight-through estimator: the gradient passes where `|x| <= bound`.

    Source: Binarized Neural Networks (Courbariaux et al., 2016); an infinite bound is the plain estimator.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float = 1.0) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return hard_sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= ctx.bound), None


def activation_sign(x: Tensor, gradient: str, bound: float = 1.0) -> Tensor:
    """`sign(x)` with the gradient that a recipe names (`conv.activation_gradient`); `bound` is that of `clip`."""
    return ApproxSign.apply(x) if gradient == "approx" else ClipSign.apply(x, bound)
