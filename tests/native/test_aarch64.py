"""The NEON kernels under qemu-user, where a cross compiler and an emulator are installed; see check_aarch64.py."""

from __future__ import annotations

import os
from pathlib import Path

import check_aarch64
import pytest


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library and the core test for aarch64."""
    folder = tmp_path_factory.mktemp("aarch64")
    try:
        check_aarch64.emulator()
        check_aarch64.cross_compile(folder)
    except check_aarch64.Missing as missing:
        pytest.skip(str(missing))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_neon_equals_scalar_under_emulation(build: Path) -> None:
    try:
        assert "all passed" in check_aarch64.run_core_test(build, cases=150)
    except check_aarch64.Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_exported_model_runs_on_neon_as_on_scalar(build: Path, tmp_path: Path) -> None:
    root = os.environ.get("AARCH64_ROOT")
    if root is None:
        pytest.skip("AARCH64_ROOT names no folder of check_aarch64.py --fetch")
    try:
        report = check_aarch64.run_model(build, Path(root), tmp_path)
    except check_aarch64.Missing as missing:
        pytest.skip(str(missing))
    assert report["equal"] and report["finite"]
