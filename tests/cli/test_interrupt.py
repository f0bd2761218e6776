"""Ctrl-C and SIGTERM in training: a checkpoint stays, and going on ends where an undisturbed run ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from binarize.api import run_folder
from binarize.cli.output import Output
from binarize.config import Config
from binarize.progress import ProgressEvent
from tests.cli.conftest import Ran, Workshop

Cli = Callable[..., Ran]


def interrupt_at(patch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Let this process get a signal when training has done `step` steps, once."""
    sent: list[int] = []

    def listen(event: ProgressEvent) -> None:
        if event.task.startswith("training") and event.done == step and not sent:
            sent.append(step)
            os.kill(os.getpid(), number)

    patch.setattr(Output, "progress", property(lambda self: listen))


def weights(file: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return state


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on(
    number: signal.Signals,
    cli: Cli,
    workshop: Workshop,
    finetuned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "stopped.pt"
    arguments = ("finetune", workshop.model, "--out", out, *workshop.options())
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7, number)
        ran = cli(*arguments, "--json")
    assert ran.code == 130
    assert ran.document["error"] == "Interrupted" and "same command" in ran.document["hint"]
    assert "Traceback" not in ran.err
    assert not out.exists()
    checkpoint = torch.load(tmp_path / "stopped.run" / "binary.ckpt", weights_only=True)
    assert checkpoint["clock"]["total_steps"] == 8  # the step under way was finished
    assert not list(tmp_path.glob("*.partial"))

    ran = cli(*arguments, "--json")
    assert ran.code == 0, ran.err
    whole, resumed = weights(finetuned), weights(out)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_convert_goes_on_too(cli: Cli, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "net.onnx"
    arguments = ("convert", workshop.model, "--out", out, *workshop.options())
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7, signal.SIGINT)
        ran = cli(*arguments)
    assert ran.code == 130
    assert "interrupted" in ran.err and "goes on from the last checkpoint" in ran.err
    assert (tmp_path / "net.run" / "binary.ckpt").exists() and not out.exists()


def test_a_command_without_training_promises_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("binarize.recipes.all_recipes", impatient)
    ran = cli("recipes")
    assert (ran.code, ran.err) == (130, "error: interrupted\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handler is taken off again"


def test_outputs_of_their_own_have_run_folders_of_their_own(tmp_path: Path) -> None:
    names = ("net.onnx", "net.pt", "detector-1.5", "detector-1.6", "x.run")
    runs = []
    for name in names:
        with run_folder(tmp_path / name, Config()) as run:
            runs.append(run.name)
    assert runs == ["net.run", "net.run", "detector-1.5.run", "detector-1.6.run", "x.run.run"]
