"""What becomes of a binary conv's input: signs, ternary values, or a sum of several sign planes.

Each part maps the centred input `z = x - threshold` to `sum over n of weight[n] * plane[n]`, where a plane is
`sign(z - offset)`, or the mean of two such signs. Training computes that sum; `planes()` names its terms for the packed
graph, where each sign is a plane of bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from binarize.config import ConvConfig
from binarize.nn.sign import ClipSign, activation_sign, hard_sign


class Plane(NamedTuple):
    """`weight * mean over offsets of sign(z - offset)`; one offset, or two for a ternary plane."""

    offsets: tuple[float, ...]
    weight: float


class SignActivation(nn.Module):
    """`sign(z)`, with ApproxSign's gradient or that of the clipped straight-through estimator."""

    def __init__(self, gradient: str = "approx", bound: float = 1.0) -> None:
        super().__init__()
        self.gradient, self.bound = gradient, bound

    def forward(self, z: Tensor) -> Tensor:
        return activation_sign(z, self.gradient, self.bound)

    def planes(self) -> list[Plane]:
        return [Plane((0.0,), 1.0)]

    def observe(self, z: Tensor) -> None:
        """Nothing to calibrate."""


class _Ternary(torch.autograd.Function):
    """`(sign(z - delta) + sign(z + delta)) / 2`; the gradient passes where `|z| < 1`, whatever delta is."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, delta: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (hard_sign(z - delta) + hard_sign(z + delta)) / 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (z,) = ctx.saved_tensors
        return grad * (z.abs() < 1.0), None


class TernaryActivation(nn.Module):
    """`+1 above delta, -1 below -delta, 0 between`, where `delta = factor * mean |z|`.

    The paper takes the mean over the current input; here it is a running mean, as in a batch norm, so that one image's
    result does not depend on the others in its batch and the packed graph has constant thresholds.

    Args:
        factor: 0.4 in the paper.
        momentum: of the running mean.

    Source: TBN (Wan et al., ECCV 2018), section 3.
    """

    mean_abs: Tensor

    def __init__(self, factor: float = 0.4, momentum: float = 0.1) -> None:
        super().__init__()
        self.factor, self.momentum = factor, momentum
        self.register_buffer("mean_abs", torch.tensor(1.0))
        self._observed = 0

    def forward(self, z: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean_abs.lerp_(z.detach().abs().mean().to(self.mean_abs), self.momentum)
        return _Ternary.apply(z, (self.factor * self.mean_abs).to(z))

    def planes(self) -> list[Plane]:
        delta = float(self.factor * self.mean_abs)
        return [Plane((delta, -delta), 1.0)]

    def observe(self, z: Tensor) -> None:
        """Take `mean |z|` from calibration data: the plain mean over the batches observed."""
        self._observed += 1
        self.mean_abs.lerp_(z.detach().abs().mean().to(self.mean_abs), 1 / self._observed)


class ActivationBases(nn.Module):
    """`sum over n of beta[n] * sign(z + v[n] - 1/2)` with learned shifts v and factors beta.

    Starts as the uniform quantizer of a normal variable: thresholds `2 / sqrt(N + 1)` standard deviations apart.

    Args:
        bases: N.

    Source: ABC-Net (Lin et al., NeurIPS 2017), section 3.2.
    """

    def __init__(self, bases: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.empty(bases))
        self.factor = nn.Parameter(torch.empty(bases))
        self._observed = 0.0
        self._start(1.0)

    def _start(self, deviation: float) -> None:
        bases = self.shift.numel()
        step = deviation * 2 / (bases + 1) ** 0.5
        places = torch.arange(bases, dtype=torch.float32) - (bases - 1) / 2
        self.shift.data.copy_(0.5 - step * places)
        self.factor.data.fill_(step / 2 if bases > 1 else 1.0)

    def forward(self, z: Tensor) -> Tensor:
        # The gradient where |u| <= 1/2 is that of clipping u + 1/2 to [0, 1].
        planes = (b * ClipSign.apply(z + (v - 0.5), 0.5) for v, b in zip(self.shift, self.factor, strict=True))
        return torch.stack(tuple(planes)).sum(0) if self.shift.numel() > 1 else next(planes)

    def planes(self) -> list[Plane]:
        pairs = zip(self.shift.detach(), self.factor.detach(), strict=True)
        return [Plane((0.5 - float(v),), float(b)) for v, b in pairs]

    def observe(self, z: Tensor) -> None:
        """Spread the thresholds by the input's standard deviation, the largest seen in calibration."""
        self._observed = max(self._observed, float(z.detach().std()))
        self._start(max(self._observed, 1e-6))


def activation_binarizer(config: ConvConfig) -> SignActivation | TernaryActivation | ActivationBases:
    """The part that `conv.activations` names."""
    if config.activations == "ternary":
        return TernaryActivation(config.ternary_factor)
    if config.activations == "bases":
        return ActivationBases(config.activation_bases)
    return SignActivation(config.activation_gradient, config.clip)
