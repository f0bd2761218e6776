"""Bad input of every kind: exit code, a message with the next step, no traceback, no half-written file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from binarize.errors import VerificationError
from tests.cli.conftest import Ran, Workshop, write_images

Cli = Callable[..., Ran]
SIZE = ("--input-size", "1,8,8")


def refused(ran: Ran, code: int, *words: str) -> None:
    """Assert that a run in JSON mode failed with `code`, saying `words`."""
    assert ran.code == code, ran
    found = ran.document
    assert found["exit_code"] == code
    text = f"{found['layer']} {found['message']} {found['hint']}"
    assert all(word in text for word in words), text
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_no_such_model(command: str, cli: Cli, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x.onnx") if command == "convert" else ()
    refused(cli(command, tmp_path / "none.pt", *out, "--json"), 2, "none.pt")
    assert not list(tmp_path.glob("*"))


def test_not_a_model(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "notes.pt"
    file.write_text("these are not weights")
    refused(cli("inspect", file, "--json"), 3, "notes.pt")


def test_a_truncated_model(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "half.pt"
    file.write_bytes(workshop.model.read_bytes()[:-900])
    refused(cli("inspect", file, "--arch", workshop.arch, "--json"), 3, "half.pt")


class Hostile:
    def __init__(self, witness: str) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.witness, "w")


def test_a_hostile_pickle_is_not_run(cli: Cli, tmp_path: Path) -> None:
    file, witness = tmp_path / "evil.pt", tmp_path / "witness"
    file.write_bytes(pickle.dumps(Hostile(str(witness))))
    assert cli("inspect", file, "--json").code == 3
    torch.save({"state_dict": Hostile(str(witness))}, file)
    refused(cli("inspect", file, "--json"), 3, "--trust-pickle")
    assert not witness.exists()


def test_weights_that_fit_no_architecture(cli: Cli, workshop: Workshop) -> None:
    refused(cli("inspect", workshop.model, "--json"), 3, "--arch")


def test_nan_weights(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    state = torch.load(workshop.model, weights_only=True)
    state["state_dict"]["body.0.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    refused(cli("inspect", tmp_path / "nan.pt", "--arch", workshop.arch, *SIZE, "--json"), 3, "body.0.weight")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--recipe", "bireall"), ("bireal",)),
        (("--set", "training.epoch=3"), ("training.epochs",)),
        (("--set", "training.epochs"), ("=",)),
        (("--set", "link.kind=elastik"), ("elastic",)),
        (("--keep", "bodi.*"), ("bodi.*", "body")),
        (("--input-size", "8x8"), ("C,H,W",)),
        (("--input-size", "1,0,8"), ("C,H,W",)),
        (("--config", "no-such.toml"), ("no-such.toml",)),
        (("--set", "seed=" + 5000 * "["), ("seed",)),
        (("--set", "seed=1\nstrict=true"), ("seed",)),
        (("--arch", "torchvision:resnet81"), ("resnet18",)),
    ],
)
def test_options_that_cannot_be_used(
    options: tuple[str, ...], words: tuple[str, ...], cli: Cli, workshop: Workshop
) -> None:
    refused(cli("inspect", workshop.model, "--arch", workshop.arch, *SIZE, *options, "--json"), 2, *words)


def test_a_model_without_convs(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mlp.py").write_text(
        "from torch import nn\n\n\ndef mlp():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).state_dict(), tmp_path / "mlp.pt")
    arch = f"{tmp_path / 'mlp.py'}:mlp"
    refused(cli("inspect", tmp_path / "mlp.pt", "--arch", arch, *SIZE, "--json"), 3)


def test_an_output_that_cannot_be_written(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    for command, out in (("convert", tmp_path / "no" / "x.onnx"), ("finetune", tmp_path)):
        refused(cli(command, workshop.model, "--out", out, "--json", *workshop.options()), 2)
    assert not list(tmp_path.glob("*"))


@pytest.mark.skipif(os.name != "posix", reason="POSIX limits")
def test_paths_that_the_system_refuses(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    long = "n" * 300
    for arguments in (
        ("convert", workshop.model, "--out", tmp_path / f"{long}.onnx", *workshop.options()),
        ("bench", tmp_path / f"{long}.onnx"),
        ("inspect", workshop.model, "--arch", f"{long}.py:net"),
    ):
        refused(cli(*arguments, "--json"), 2, "too long", long)
    (tmp_path / "net.py").write_text("__all__ = ['net']\n")
    refused(cli("zoo", tmp_path / "net.py", "--out", tmp_path / "net.py", "--json"), 2, "exists", "net.py")


def test_a_zoo_in_which_a_model_fails(cli: Cli, tmp_path: Path) -> None:
    net = "from torch import nn\n__all__ = ['good', 'broken']\ndef good():\n    return nn.Conv2d(3, 4, 3)\n"
    (tmp_path / "net.py").write_text(net + "def broken():\n    raise RuntimeError('not today')\n")
    arguments = ("zoo", tmp_path / "net.py", "--until", "build", "--out", tmp_path / "run", "--json")
    ran = cli(*arguments)
    assert ran.code == 3
    assert [failure["model"].rpartition(":")[2] for failure in ran.document["failures"]] == ["broken"]
    assert cli(*arguments, "--models", "good").code == 0


def test_an_input_beyond_all_memory(cli: Cli, workshop: Workshop) -> None:
    size = ("--input-size", f"1,{1 << 24},{1 << 24}")
    refused(cli("inspect", workshop.model, "--arch", workshop.arch, *size, "--json"), 5, "memory", "--input-size")


def test_data_with_the_wrong_number_of_classes(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    write_images(tmp_path / "train.parquet", 64, seed=3, classes=4)
    options = workshop.options()
    options[options.index("--data") + 1] = str(tmp_path)
    refused(cli("finetune", workshop.model, "--out", tmp_path / "x.pt", "--json", *options), 2, "4 classes")
    assert not (tmp_path / "x.pt").exists()
    refused(cli("eval", workshop.model, "--arch", workshop.arch, "--data", tmp_path, "--json"), 2, "4 classes")


def test_data_that_is_not_there(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    refused(cli("eval", workshop.model, "--arch", workshop.arch, "--data", tmp_path / "x", "--json"), 2)
    refused(cli("eval", workshop.model, "--arch", workshop.arch, "--data", tmp_path, "--json"), 2)


def test_a_checkpoint_of_another_run(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    arguments = (
        "finetune",
        workshop.model,
        "--out",
        tmp_path / "x.pt",
        "--json",
        *workshop.options(epochs=1),
    )
    assert cli(*arguments).code == 0
    refused(cli(*arguments, "--seed", "7"), 2, "--restart")
    assert cli(*arguments, "--seed", "7", "--restart").code == 0


@pytest.mark.parametrize("command", ["export", "eval", "bench"])
def test_files_of_the_wrong_kind(command: str, cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no protobuf")
    if command == "export":
        refused(cli("export", workshop.model, "--out", tmp_path / "x.onnx", "--json"), 3, "tiny.pt")
        assert not (tmp_path / "x.onnx").exists()
        return
    data = ("--data", workshop.data) if command == "eval" else ()
    refused(cli(command, tmp_path / "broken.onnx", *data, "--json"), 3, "broken.onnx")
    refused(cli(command, tmp_path / "none.onnx", *data, "--json"), 2, "none.onnx")


def test_a_failed_proof_writes_no_file(
    cli: Cli, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagree(*arguments: object) -> None:
        raise VerificationError("1 of 2 nodes differ", layer="body.0")

    monkeypatch.setattr("binarize.exporting.verify", disagree)
    out = tmp_path / "x.onnx"
    refused(cli("convert", workshop.model, "--arch", workshop.arch, *SIZE, "--out", out, "--json"), 4, "body.0")
    assert not out.exists()


def test_an_environment_that_cannot_run_models(cli: Cli, converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINARIZE_ISA", "none-such")  # the session lives in a process of its own, which inherits this
    refused(cli("bench", converted, "--json"), 5, "none-such", "Unset BINARIZE_ISA")


@pytest.mark.parametrize("command", ["convert", "finetune", "eval", "export"])
def test_an_instruction_set_that_is_not_there_is_found_before_the_work(
    command: str,
    cli: Cli,
    workshop: Workshop,
    finetuned: Path,
    converted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BINARIZE_ISA", "none-such")
    if command == "finetune":  # runs no operator
        assert cli(command, workshop.model, "--out", tmp_path / "x.pt", *workshop.options(epochs=0.2)).code == 0
        return
    arguments = {
        "convert": (workshop.model, "--out", tmp_path / "x.onnx", *workshop.options()),
        "export": (finetuned, "--arch", workshop.arch, "--out", tmp_path / "x.onnx"),
        "eval": (converted, "--data", workshop.data),
    }[command]
    ran = cli(command, *arguments, "--json")
    refused(ran, 5, "none-such", "Unset BINARIZE_ISA")
    assert "training" not in ran.err and not list(tmp_path.iterdir())


def test_what_binarize_wrote_is_no_float_model(cli: Cli, workshop: Workshop, finetuned: Path, tmp_path: Path) -> None:
    checkpoint = finetuned.with_name("tiny_binary.run") / "binary.ckpt"
    for options in ((), ("--arch", workshop.arch)):
        refused(cli("inspect", finetuned, *options, "--json"), 2, "binary module already", "binarize export")
        refused(cli("inspect", checkpoint, *options, "--json"), 2, "checkpoint", "goes on from it")


def test_a_trained_file_is_not_replaced_by_an_untrained_one(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    out, plain = tmp_path / "net.onnx", ("--arch", workshop.arch, *SIZE)
    assert cli("convert", workshop.model, "--out", out, *workshop.options(epochs=0.5)).code == 0
    before = {file: file.read_bytes() for file in (out, *out.with_suffix(".run").iterdir())}
    refused(cli("convert", workshop.model, "--out", out, *plain, "--json"), 2, "net.onnx", "--data", "--restart")
    assert {file: file.read_bytes() for file in (out, *out.with_suffix(".run").iterdir())} == before
    assert cli("convert", workshop.model, "--out", out, *plain, "--restart").code == 0
    assert out.read_bytes() != before[out]


def test_too_few_images_are_refused_before_anything_runs(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    many = ("--set", "training.batch_size=500")
    ran = cli("convert", workshop.model, "--out", tmp_path / "x.onnx", *workshop.options(), *many, "--json")
    refused(ran, 2, "96 training images", "training.batch_size=96")
    assert ran.err == "" and not list(tmp_path.iterdir())


def test_training_that_diverges_is_no_bug(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    rates = ("--set", "training.learning_rate=1e30", "--set", "training.warmup=0")
    ran = cli("finetune", workshop.model, "--out", tmp_path / "x.pt", *workshop.options(), *rates, "--json")
    refused(ran, 6, "loss", "training.learning_rate")


def test_errors_of_the_command_line_name_their_command(cli: Cli) -> None:
    ran = cli("convert", "--json")
    refused(ran, 2, "MODEL", "binarize convert --help")
    assert ran.document["command"] == "convert"
