"""Ctrl-C at the worst moments: in the middle of a step, at an epoch's end, during the measurement behind it."""

import os
import signal

import pytest
import torch
from torch import nn

from binarize.config import Config
from binarize.training.stages import float_stages
from binarize.training.trainer import Trainer

STEPS = 10
"""Per epoch."""


def interrupt(times=1):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)


def trainer(checkpoint, at=lambda epoch, step: None, evaluate=None, steps=STEPS):
    """Of three epochs of so many steps; `at` is called before each step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))

    def batches(epoch, first):
        generator = torch.Generator().manual_seed(epoch)
        for step in range(steps):
            batch = torch.randn(4, 3, 2, 2, generator=generator), torch.randint(4, (4,), generator=generator)
            if step >= first:
                at(epoch, step)
                yield batch

    config = Config().with_settings(["training.float_epochs=3", "training.checkpoint_minutes=0"]).training
    options = {"checkpoint": checkpoint, "fingerprint": "one", "evaluate": evaluate}
    return Trainer(net, float_stages(config), batches, steps, config, **options)


def test_an_epoch_that_ends_with_an_interrupt_is_in_the_history(tmp_path):
    first = trainer(tmp_path / "c", at=lambda epoch, step: interrupt() if (epoch, step) == (1, STEPS - 1) else None)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer(tmp_path / "c")
    assert [h["epoch"] for h in second.run()] == [1.0, 2.0, 3.0]
    whole = trainer(None)
    whole.run()
    assert all(torch.equal(a, b) for a, b in zip(second.module.parameters(), whole.module.parameters(), strict=True))


def test_an_impatient_interrupt_keeps_the_last_whole_state(tmp_path):
    first = trainer(tmp_path / "c")
    backward = first.accelerator.backward

    def half_a_step(loss):
        backward(loss)
        if first.clock.total_steps == 5:
            first.module[1].weight.data.add_(100.0)  # an optimizer that is not through
            interrupt(times=2)

    first.accelerator.backward = half_a_step
    with pytest.raises(KeyboardInterrupt):
        first.run()
    state = torch.load(tmp_path / "c", weights_only=True)
    assert state["clock"]["total_steps"] == 5 and state["module"]["1.weight"].abs().max() < 50


def test_an_interrupted_measurement_keeps_the_epoch(tmp_path):
    def evaluate(module):
        interrupt(times=2)
        return {"top1": 1.0}

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "c", evaluate=evaluate).run()
    found = trainer(tmp_path / "c", evaluate=lambda module: {"top1": 0.5}).run()
    assert [h["epoch"] for h in found] == [1.0, 2.0, 3.0]
    assert [h.get("val_top1") for h in found] == [None, 0.5, 0.5]


def test_epochs_of_one_step_are_saved_too(tmp_path):
    """A run that dies without a chance to save goes on from the last time that was due, which may be an epoch's end."""

    def die(epoch, step):
        if epoch == 2:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path / "c", at=die, steps=1).run()
    assert torch.load(tmp_path / "c", weights_only=True)["clock"]["total_steps"] == 2
