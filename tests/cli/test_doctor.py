"""`doctor`: what it finds here, and what it says about a machine that cannot run models."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest

from binarize.errors import EnvironmentProblem
from binarize.runtime import active_isa, doctor
from tests.cli.conftest import Ran

Cli = Callable[..., Ran]


def statuses(diagnosis: doctor.Diagnosis) -> dict[str, str]:
    return {check.name: check.status for check in diagnosis.checks}


def test_this_machine_can_run_models() -> None:
    diagnosis = doctor.diagnose()
    needed = ("Python", "ONNX Runtime", "op library", "exported symbols", "kernels run on")
    found = statuses(diagnosis)
    assert {found[name] for name in needed} <= {"ok", "warn"}
    assert diagnosis.status != "fail"
    assert diagnosis.to_dict()["isa"] in (active_isa(), None)


def test_the_document_has_every_check(cli: Cli) -> None:
    document = cli("doctor", "--json").document
    assert {"command", "status", "verdict", "isa", "checks", "warnings"} <= document.keys()
    assert all({"name", "status", "found", "hint"} == check.keys() for check in document["checks"])
    human = cli("doctor")
    assert all(check["name"] in human.out for check in document["checks"])


def test_a_missing_library_fails_with_exit_5(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise EnvironmentProblem("The op library is not installed.", hint="pip install binarize-nn")

    monkeypatch.setattr(doctor, "library_path", missing)
    ran = cli("doctor", "--json")
    assert ran.code == 5
    assert ran.document["status"] == "fail"
    assert {c["name"] for c in ran.document["checks"] if c["status"] == "fail"} == {
        "op library",
        "exported symbols",
    }
    assert "pip install binarize-nn" in cli("doctor").out


def test_a_library_without_our_entry_points_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SYMBOLS", ("RegisterCustomOps", "NoSuchSymbol"))
    check = next(c for c in doctor.diagnose().checks if c.name == "exported symbols")
    assert check.status == "fail" and "NoSuchSymbol" in check.found and "RegisterCustomOps," not in check.found


def test_an_instruction_set_that_is_not_there_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINARIZE_ISA", "no-such-isa")
    ran = cli("doctor", "--json")
    assert ran.code == 5 and ran.document["isa"] is None
    (failed,) = [check["found"] for check in ran.document["checks"] if check["status"] == "fail"]
    assert failed.startswith("The op library does not run: BINARIZE_ISA=no-such-isa: ")


def test_a_forced_instruction_set_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINARIZE_ISA", "scalar")
    check = next(c for c in doctor.diagnose().checks if c.name == "kernels run on")
    assert check.status == "ok" and check.found == "scalar" and "BINARIZE_ISA=scalar" in check.hint


def test_missing_optional_packages_are_a_warning(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(package: str) -> str:
        if package == "torch":
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    diagnosis = doctor.diagnose()
    assert diagnosis.status == "warn" and statuses(diagnosis)["convert and train"] == "warn"
    ran = cli("doctor")
    assert ran.code == 0 and "missing: torch" in ran.out


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512_vpopcntdq\n", {"avx2", "avx512vpopcntdq"}),
        ("Features\t: fp asimd crc32\n", {"neon"}),
        ("nothing to see\n", set()),
    ],
)
def test_cpu_flags_have_one_spelling(text: str, flags: set[str], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert doctor.cpu_flags(tmp_path / "cpuinfo") == flags


def test_cpu_flags_are_unknown_off_linux(tmp_path: Path) -> None:
    assert doctor.cpu_flags(tmp_path / "none") is None
