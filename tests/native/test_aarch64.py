"""The NEON kernels under qemu-user, where a cross compiler and an emulator are installed; see check_aarch64.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import check_aarch64
import onnx
import pytest

from binarize.runtime import active_isa, library_path


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library and the core test for aarch64."""
    folder = tmp_path_factory.mktemp("aarch64")
    try:
        check_aarch64.cross_compile(folder)
    except check_aarch64.Missing as missing:
        pytest.skip(str(missing))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_compiles_and_neon_equals_scalar_under_emulation(build: Path) -> None:
    """One test for both, because processes share no build; where nothing can run it, it is compiled all the same."""
    machine = (build / "libbinarize_ops.so").read_bytes()[18:20]
    assert int.from_bytes(machine, "little") == 183  # AArch64 in the ELF header
    try:
        said = check_aarch64.run_core_test(build, cases=150)
    except check_aarch64.Missing as missing:
        pytest.skip(f"compiled, not run: {missing}")
    assert "all passed" in said


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an aarch64 Python and ONNX Runtime: AARCH64_ROOT names one, or it is fetched now.

    Asked for before `build`, so that nothing is compiled or fetched that nothing can run.
    """
    try:
        check_aarch64.emulator(check_aarch64.MINIMUM_QEMU)
        if named := os.environ.get("AARCH64_ROOT"):
            return Path(named)
        folder = tmp_path_factory.mktemp("aarch64-root")
        check_aarch64.fetch(folder)
    except check_aarch64.Missing as missing:
        pytest.skip(str(missing))
    except subprocess.CalledProcessError as failure:
        pytest.skip(f"an aarch64 Python cannot be fetched here, and AARCH64_ROOT names none: {failure}")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_exported_models_run_on_neon_as_on_scalar(root: Path, build: Path, tmp_path: Path) -> None:
    """tests/conftest.py tells its outcome at the end of every run."""
    try:
        report = check_aarch64.run_models(build, root, tmp_path)
    except check_aarch64.Missing as missing:
        pytest.skip(str(missing))
    assert check_aarch64.is_right(report), report


@pytest.mark.slow
def test_the_models_and_what_compares_them_without_an_emulator(tmp_path: Path) -> None:
    """On this machine's own kernels: few machines have the emulator that the test above needs."""
    models, data = check_aarch64.export_models(tmp_path)
    kinds = [{node.op_type for node in onnx.load(model).graph.node} for model in models]
    assert ["Int8Conv2d" in found for found in kinds] == [False, True]
    stem = next(node for node in onnx.load(models[1]).graph.node if node.op_type == "Int8Conv2d")
    assert {a.name: a.i for a in stem.attribute}["pools_values"] == 1
    assert all("BinaryConv2d" in found for found in kinds)
    child = [sys.executable, "-c", check_aarch64.CHILD, active_isa(), str(library_path())]
    report = check_aarch64.ask(child, models, data)
    assert check_aarch64.is_right(report), report
    del report["float16_int8.onnx"]
    assert not check_aarch64.is_right(report)
