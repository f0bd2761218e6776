"""Builds the stand-alone core test with sanitizers and runs it on every instruction set of this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "binarize" / "native"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_core_is_clean_under_sanitizers(sanitizers: str, tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None or not NATIVE.is_dir():
        pytest.skip("needs cmake and the sources")
    options = ["-DBINARIZE_BUILD_TESTS=ON", f"-DBINARIZE_SANITIZE={sanitizers}", "-DBINARIZE_WERROR=ON"]
    subprocess.run([cmake, "-S", str(NATIVE), "-B", str(tmp_path), *options], check=True, capture_output=True)
    subprocess.run(
        [cmake, "--build", str(tmp_path), "--parallel", "2", "--target", "core_test"], check=True, capture_output=True
    )
    run = subprocess.run([str(tmp_path / "tests" / "core_test"), "400"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all passed" in run.stdout
