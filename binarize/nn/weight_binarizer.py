"""What becomes of a binary conv's latent weight: its signs, or several bases of signs.

Every part maps the latent weight `[O, C/g, k, ...]` to the tensor the input is convolved with. `bases()` names its
terms, `sum over m of factor[m] * sign(latent[m])`, for the packed graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from binarize.config import ConvConfig
from binarize.nn.sign import ClipSign, hard_sign


def per_output(values: Tensor, like: Tensor) -> Tensor:
    """`[O]` shaped so that it meets the first dimension of a weight."""
    return values.view(-1, *[1] * (like.dim() - 1))


class SignWeight(nn.Module):
    """`sign(weight)`, optionally of the weight centred over its input channels.

    With `W' = sign(W) * alpha` as what the output sees, and g the gradient of W', the latent weight gets

    - `magnitude`: `alpha * g` where `|W| <= bound` (Bi-Real Net, section 3.3; alpha detached);
    - `clip`: `g` where `|W| <= bound` (the released code of Bi-Real and ReActNet; alpha detached);
    - `exact`: `alpha * g` where `|W| <= bound`, plus `sign(W)/n * sum(g * sign(W))`, the gradient through
      `alpha = mean |W|` (XNOR-Net; its paper's formula drops the cross terms);
    - `identity`: `g` everywhere.

    The factor alpha itself is the scale's business (`binarize.nn.scale`), after the exact integer accumulator. With
    another scale than `mean |W|` the estimators pass what they get.

    Args:
        gradient: one of the above.
        bound: where the clipped estimators stop.
        scaled: whether the scale is `mean |W|`, which then is part of the gradient that arrives.
        centred: subtract the mean over input channels, then clamp to [-1, 1] (XNOR-Net). Without an effect
            where a group has a single input channel, whose mean is itself.
    """

    def __init__(
        self, gradient: str = "magnitude", bound: float = 1.0, *, scaled: bool = True, centred: bool = False
    ) -> None:
        super().__init__()
        self.gradient, self.bound, self.scaled, self.centred = gradient, bound, scaled, centred

    def latent(self, weight: Tensor) -> Tensor:
        """The weight whose signs count."""
        if self.centred and weight.shape[1] > 1:
            return (weight - weight.mean(dim=1, keepdim=True)).clamp(-1.0, 1.0)
        return weight

    def forward(self, weight: Tensor) -> Tensor:
        latent = self.latent(weight)
        bound = float("inf") if self.gradient == "identity" else self.bound
        if self.scaled and self.gradient in ("clip", "identity"):
            latent = _UndoScale.apply(latent)
        return ClipSign.apply(latent, bound)

    def bases(self, weight: Tensor) -> list[tuple[Tensor, Tensor]]:
        latent = self.latent(weight.detach())
        return [(latent, latent.new_ones(len(latent)))]


class _UndoScale(torch.autograd.Function):
    """Identity whose gradient is divided by `mean |W|` per output channel, which the scale multiplies in."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        alpha = weight.abs().flatten(1).mean(1).clamp_min(1e-12)
        return grad / per_output(alpha, grad)


class _SumOfBases(torch.autograd.Function):
    """`sum over m of alpha[m] * sign(latent[m])`; each sign passes its gradient on unchanged."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, latents: Tensor, alphas: Tensor) -> Tensor:
        ctx.save_for_backward(alphas)
        factors = alphas.view(*alphas.shape, *[1] * (weight.dim() - 1))
        return (hard_sign(latents) * factors).sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (alphas,) = ctx.saved_tensors
        return grad * per_output(alphas.sum(0), grad), None, None


class WeightBases(nn.Module):
    """`sum over m of alpha[m] * sign(W - mean + u[m] * std)`, u evenly spread over [-1, 1], alpha by least squares.

    Mean, deviation and alpha are per output channel, the paper's channel-wise form, which costs nothing more to run.

    Args:
        count: M; one base has u = 0.

    Source: ABC-Net (Lin et al., NeurIPS 2017), section 3.1.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            latents, alphas = self._fit(weight)
        return _SumOfBases.apply(weight, latents, alphas)

    def latent(self, weight: Tensor) -> Tensor:
        """The weight itself; the bases bring their own factors."""
        return weight

    def bases(self, weight: Tensor) -> list[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            latents, alphas = self._fit(weight)
        return list(zip(latents, alphas, strict=True))

    def _fit(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Latents `[M, O, ...]` and factors `[M, O]`; the least squares are solved in float64, a little regularised
        because bases of a filter with few weights may coincide."""
        flat = weight.detach().flatten(1)
        mean, deviation = flat.mean(1), flat.std(1, correction=0)
        spread = torch.linspace(-1, 1, self.count) if self.count > 1 else torch.zeros(1)
        shifts = spread.to(flat)[:, None] * deviation - mean
        latents = weight.detach() + torch.stack([per_output(shift, weight) for shift in shifts])
        signs = hard_sign(latents).flatten(2).permute(1, 2, 0).double()  # O, n, M
        gram = signs.mT @ signs + 1e-6 * signs.shape[1] * torch.eye(self.count, dtype=signs.dtype, device=signs.device)
        alphas = torch.linalg.solve(gram, signs.mT @ flat.double().unsqueeze(-1)).squeeze(-1)
        return latents, alphas.mT.to(weight)


def weight_binarizer(config: ConvConfig) -> SignWeight | WeightBases:
    """The part that `conv.weights` names."""
    if config.weights == "bases":
        return WeightBases(config.weight_bases)
    scaled = config.scale == "mean_abs"
    return SignWeight(config.weight_gradient, config.clip, scaled=scaled, centred=config.weights == "centred")
