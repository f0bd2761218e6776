"""The stages of a training run as data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from binarize.config import StageConfig, TrainingConfig
from binarize.nn import BinaryConv
from binarize.training.losses import Objective, label_objective, student_objective


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one objective and one optimizer.

    Attributes:
        plan: the configuration it was made from.
        epochs: passes over the training images.
        optimizer: builds it for a module; each group's `lr` is its peak.
        objective: the loss.
        warmup: share of the stage's steps before the peak.
    """

    plan: StageConfig
    epochs: float
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    objective: Objective
    warmup: float

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def distills(self) -> bool:
        """Whether a teacher runs."""
        return self.plan.distillation > 0 or self.plan.attention > 0

    def rate(self, step: int, steps: int) -> float:
        """The learning rate's factor at `step` of `steps`: linear warm-up, then down to 0."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, steps - warm)
        return 1 - done if self.plan.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def binary_stages(config: TrainingConfig) -> list[Stage]:
    """The configured stages; those without a share are left out."""
    total = sum(plan.share for plan in config.stages)
    return [
        Stage(
            plan=plan,
            epochs=config.epochs * plan.share / total,
            optimizer=partial(_adam, config=config, plan=plan),
            objective=student_objective(plan),
            warmup=config.warmup,
        )
        for plan in config.stages
        if plan.share > 0 and config.epochs > 0
    ]


def float_stages(config: TrainingConfig) -> list[Stage]:
    """The adaptation of the float model to the data."""
    optimizer = partial(_sgd, rate=config.float_learning_rate, weight_decay=config.float_weight_decay)
    plan = StageConfig(name="float", distillation=0)
    return [Stage(plan, config.float_epochs, optimizer, label_objective, config.warmup)]


def set_stage_bits(module: nn.Module, plan: StageConfig) -> None:
    """Make activations and weights of every binary conv of `module` what `plan` says they are."""
    for layer in module.modules():
        if isinstance(layer, BinaryConv):
            layer.activation_bits = 1 if plan.activations == "binary" else 32
            layer.weight_bits = 1 if plan.weights == "binary" else 32


def _sgd(module: nn.Module, *, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)


_OPTIMIZERS = {"adam": torch.optim.Adam, "radam": torch.optim.RAdam}


def _adam(module: nn.Module, *, config: TrainingConfig, plan: StageConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(
        module,
        learning_rate=config.learning_rate * plan.rate,
        weight_step=config.weight_step * plan.weight_rate,
        weight_decay=plan.weight_decay,
        latent_decay=plan.weight_decay if plan.weights == "float" else 0.0,
    )
    return _OPTIMIZERS[plan.optimizer](groups)


def parameter_groups(
    module: nn.Module, *, learning_rate: float, weight_step: float, weight_decay: float = 0.0, latent_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups for Adam, one per binary conv: a latent weight's step is a share of its layer's mean |weight|.

    A latent weight matters by its sign alone, so what counts is after how many steps it can flip. Pretrained nets
    differ in scale by more than ten; a common absolute rate would flip everything in one and nothing in another.

    Args:
        weight_step: that share.
        weight_decay: of float convs and linear layers; all else, such as thresholds and gammas, has none.
        latent_decay: of the binary convs' latent weights. It moves no sign, but makes each easier to flip.
    """
    latent = {id(m.weight): m.weight for m in module.modules() if isinstance(m, BinaryConv)}
    decayed = {
        id(m.weight): m.weight
        for m in module.modules()
        if isinstance(m, _ConvNd | nn.Linear) and not isinstance(m, BinaryConv)
    }
    plain = [p for p in module.parameters() if id(p) not in latent and id(p) not in decayed]
    groups: list[dict[str, Any]] = [
        {"params": plain, "lr": learning_rate, "weight_decay": 0.0},
        {"params": list(decayed.values()), "lr": learning_rate, "weight_decay": weight_decay},
    ]
    for weight in latent.values():
        # Zeros have no size of their own; they get that of a fresh layer.
        size = float(weight.detach().abs().mean()) or math.sqrt(2 / weight[0].numel())
        groups.append({"params": [weight], "lr": weight_step * size, "weight_decay": latent_decay})
    return [group for group in groups if group["params"]]
