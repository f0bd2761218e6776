"""The application around the commands: help, usage errors, bugs, lean installations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ran

COMMANDS = ("convert", "inspect", "finetune", "export", "eval", "bench", "zoo", "recipes", "doctor")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_a_purpose_and_examples(command: str, cli: Callable[..., Ran]) -> None:
    ran = cli(command, "--help")
    assert ran.code == 0
    assert "Examples" in ran.out and f"$ binarize {command}" in ran.out
    assert "--json" in ran.out and "--quiet" in ran.out


def test_the_overview_lists_every_command_and_the_exit_codes(cli: Callable[..., Ran]) -> None:
    ran = cli("--help")
    assert ran.code == 0
    assert all(command in ran.out for command in COMMANDS)
    assert "Exit codes" in ran.out


def test_version(cli: Callable[..., Ran]) -> None:
    assert cli("--version").out.startswith("binarize ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("convrt", "x.pt"), "Did you mean 'convert'"),
        (("convert", "x.pt", "--out", "y.onnx", "--epoch", "3"), "--epochs"),
        (("convert", "x.pt"), "--out"),
        (("bench", "x.onnx", "--runs", "many"), "valid integer"),
    ],
)
def test_usage_errors_help_and_exit_2(arguments: tuple[str, ...], words: str, cli: Callable[..., Ran]) -> None:
    ran = cli(*arguments)
    assert ran.code == 2
    assert words in ran.err and ran.out == ""
    ran = cli(*arguments, "--json")
    assert ran.code == 2
    assert words in ran.document["message"]
    assert ran.document["exit_code"] == 2 and "--help" in ran.document["hint"]


def test_a_bug_is_one_clean_message(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr("binarize.recipes.all_recipes", broken)
    monkeypatch.delenv("BINARIZE_DEBUG", raising=False)
    ran = cli("recipes")
    assert ran.code == 1
    assert "this is a bug in binarize: ZeroDivisionError" in ran.err and "Traceback" not in ran.err
    assert cli("recipes", "--json").document["exit_code"] == 1
    monkeypatch.setenv("BINARIZE_DEBUG", "1")
    assert "Traceback" in cli("recipes").err


@pytest.mark.parametrize("where", ["build_app", "_run"])
def test_an_interrupt_around_a_command_is_no_traceback(
    where: str, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"binarize.cli.app.{where}", interrupted)
    ran = cli("recipes")
    assert (ran.code, ran.out, ran.err) == (130, "", "interrupted\n")


def test_what_libraries_print_stays_out_of_the_document(
    cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("binarize.recipes.all_recipes", lambda: print("chatter") or {})
    ran = cli("recipes", "--json")
    assert ran.document["recipes"] == []
    assert ran.err == "chatter\n"


def test_without_typer_it_says_what_to_install(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    ran = cli("doctor")
    assert ran.code == 5
    assert 'pip install "binarize-nn[convert]"' in ran.err
    assert cli("doctor", "--json").document["exit_code"] == 5


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter inside `folder`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("command", ["--help", "recipes", "doctor"])
def test_light_commands_import_no_torch(command: str, tmp_path: Path) -> None:
    code = (
        "import sys; from binarize.cli.app import main; "
        f"code = main([{command!r}]); "
        "heavy = {'torch', 'onnx', 'torchvision'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    ran = python(code, tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_without_torch_the_error_names_the_extra(tmp_path: Path) -> None:
    arguments = ["convert", "model.pt", "--out", "model.onnx", "--json"]
    code = f"import sys; sys.modules['torch'] = None; from binarize.cli.app import main; sys.exit(main({arguments!r}))"
    ran = python(code, tmp_path)
    assert ran.returncode == 5, ran.stderr
    found = json.loads(ran.stdout)
    assert "torch" in found["message"] and "binarize-nn[convert]" in found["hint"]
    assert "Traceback" not in ran.stderr


def test_doctor_runs_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from binarize.cli.app import main; "
        "sys.exit(main(['doctor', '--json']))"
    )
    ran = python(code, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["isa"]


def test_without_arguments_it_shows_the_help(cli: Callable[..., Ran]) -> None:
    ran = cli()
    assert ran.code == 2
    assert "Commands" in ran.out and ran.err == ""


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    code = "import sys; from binarize.cli.app import main; sys.exit(main(['recipes', 'el']))"
    command = f'{sys.executable} -c "{code}" | head -c 1; echo ${{PIPESTATUS[0]}}'
    ran = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.stdout.split()[-1] in ("e0", "e141", "0", "141"), ran
    assert ran.stderr == ""


@pytest.mark.parametrize("arguments", ["recipes", "recipes --json", "recipes el --toml", "--version", "--help"])
def test_an_output_that_takes_nothing(arguments: str, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full, which stands for a full disk")
    program = f'{sys.executable} -c "import sys; from binarize.cli.app import main; sys.exit(main())" {arguments}'
    full = subprocess.run(["bash", "-c", f"{program} > /dev/full"], cwd=tmp_path, capture_output=True, text=True)
    assert full.returncode == 5, full
    assert full.stderr.splitlines() == [
        "error: cannot write the output: No space left on device", "hint: check free space and permissions",
    ]  # fmt: skip
    closed = subprocess.run(["bash", "-c", f"{program} >&-"], cwd=tmp_path, capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_a_name_comes_out_as_it_came_where_the_locale_knows_no_such_letters(tmp_path: Path) -> None:
    program = f'{sys.executable} -c "import sys; from binarize.cli.app import main; sys.exit(main())" inspect'
    plain = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run(["bash", "-c", f"{program} 'mod\u00e8le.pt'"], cwd=tmp_path, capture_output=True, env=plain)
    assert ran.returncode == 2
    assert "mod\u00e8le.pt".encode() in ran.stderr
