"""The stages of a training run as data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from binarize.config import TrainingConfig
from binarize.nn import BinaryConv2d
from binarize.training.losses import Objective, label_objective, student_objective


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one objective and one optimizer.

    Attributes:
        name: `float`, `activations` (stage 1) or `binary` (stage 2).
        epochs: passes over the training images.
        weight_bits: 1 or 32 for the binary convs' weights during the stage.
        optimizer: builds it for a module; each group's `lr` is its peak.
        objective: the loss.
        distill: whether the teacher runs.
        warmup: share of the stage's steps before the peak.
    """

    name: str
    epochs: float
    weight_bits: int
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    objective: Objective
    distill: bool
    warmup: float

    def rate(self, step: int, steps: int) -> float:
        """The learning rate's factor at `step` of `steps`: linear warm-up, then cosine to 0."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def binary_stages(config: TrainingConfig) -> list[Stage]:
    """Stage 1 (binary activations, float weights) if it has a share, then stage 2 (both binary)."""
    share = min(config.activation_share, 1.0)
    stages = [
        _binary_stage("activations", config, config.epochs * share, weight_bits=32, weight_factor=0.1),
        _binary_stage("binary", config, config.epochs * (1 - share), weight_bits=1, weight_factor=1.0),
    ]
    return [stage for stage in stages if stage.epochs > 0]


def float_stages(config: TrainingConfig) -> list[Stage]:
    """The adaptation of the float model to the data."""
    optimizer = partial(_sgd, rate=config.float_learning_rate, weight_decay=max(config.weight_decay, 1e-4))
    return [Stage("float", config.float_epochs, 1, optimizer, label_objective, False, config.warmup)]


def _binary_stage(name: str, config: TrainingConfig, epochs: float, *, weight_bits: int, weight_factor: float) -> Stage:
    return Stage(
        name=name,
        epochs=epochs,
        weight_bits=weight_bits,
        optimizer=partial(_adam, config=config, weight_factor=weight_factor),
        objective=student_objective(config),
        distill=config.distillation > 0,
        warmup=config.warmup,
    )


def _sgd(module: nn.Module, *, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def _adam(module: nn.Module, *, config: TrainingConfig, weight_factor: float) -> torch.optim.Optimizer:
    """Adam with one group per binary conv: a latent weight's step is a share of its layer's mean |weight|.

    A latent weight matters by its sign alone, so what counts is after how many steps it can flip. Pretrained nets
    differ in scale by more than ten; a common absolute rate would flip everything in one and nothing in another.
    """
    latent = {id(m.weight): m.weight for m in module.modules() if isinstance(m, BinaryConv2d)}
    decayed = {
        id(m.weight): m.weight
        for m in module.modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and not isinstance(m, BinaryConv2d)
    }
    plain = [p for p in module.parameters() if id(p) not in latent and id(p) not in decayed]
    groups = [
        {"params": plain, "lr": config.learning_rate},
        {"params": list(decayed.values()), "lr": config.learning_rate, "weight_decay": config.weight_decay},
    ]
    for weight in latent.values():
        rate = config.weight_step * weight_factor * float(weight.detach().abs().mean())
        groups.append({"params": [weight], "lr": rate})
    return torch.optim.Adam([group for group in groups if group["params"]], lr=config.learning_rate)
