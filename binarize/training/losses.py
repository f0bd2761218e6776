"""What fine-tuning minimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.config import StageConfig


@dataclass(frozen=True)
class Answer:
    """What a net says about a batch.

    Attributes:
        logits: [N, K].
        maps: attention maps of the float inputs of chosen convs, [N, H*W] each; student's and teacher's in one order.
    """

    logits: Tensor
    maps: tuple[Tensor, ...] = ()


Objective = Callable[[Answer, Answer | None, Tensor], Tensor]
"""`(student, teacher or None, labels [N]) -> scalar loss`."""


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))`, mean over the batch (Hinton et al., 2015)."""
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def attention_map(features: Tensor) -> Tensor:
    """Where the features are large: `Q / max Q` with `Q = mean over channels of x^2`, `[N, C, H, W] -> [N, H*W]`.

    Larq's replication divides by the maximum, and the published weight of 30 was verified with that.
    """
    energy = features.float().square().mean(dim=1).flatten(1)
    return energy / energy.amax(dim=1, keepdim=True).clamp_min(1e-12)


def attention_difference(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """Mean squared difference of attention maps, averaged over the places compared.

    Source: Real-to-Binary (Martinez et al., ICLR 2020), section 4.1, after Zagoruyko and Komodakis (2017).
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([F.mse_loss(s, t) for s, t in pairs]).mean()


def student_objective(stage: StageConfig) -> Objective:
    """Cross entropy with the labels, distillation and attention matching, weighted as `stage` says."""

    def objective(student: Answer, teacher: Answer | None, labels: Tensor) -> Tensor:
        loss = student.logits.new_zeros(())
        if stage.cross_entropy:
            loss = loss + stage.cross_entropy * F.cross_entropy(student.logits, labels)
        if teacher is not None and stage.distillation:
            loss = loss + stage.distillation * distillation(student.logits, teacher.logits, stage.temperature)
        if teacher is not None and student.maps:
            loss = loss + stage.attention * attention_difference(student.maps, teacher.maps)
        return loss

    return objective


def label_objective(student: Answer, teacher: Answer | None, labels: Tensor) -> Tensor:
    """Cross entropy with the labels alone."""
    return F.cross_entropy(student.logits, labels)
