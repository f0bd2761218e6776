"""What fine-tuning minimises."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from binarize.config import TrainingConfig

Objective = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""`(student logits [N, K], teacher logits [N, K] or None, labels [N]) -> scalar loss`."""


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))`, mean over the batch (Hinton et al., 2015)."""
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def student_objective(config: TrainingConfig) -> Objective:
    """Cross entropy with the labels plus distillation from the teacher, weighted as `config` says."""

    def objective(student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        loss = config.cross_entropy * F.cross_entropy(student, labels)
        if teacher is not None:
            loss = loss + config.distillation * distillation(student, teacher, config.temperature)
        return loss

    return objective


def label_objective(student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
    """Cross entropy with the labels alone."""
    return F.cross_entropy(student, labels)
