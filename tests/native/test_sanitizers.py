"""Builds the stand-alone core test with AddressSanitizer and UndefinedBehaviorSanitizer and runs it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "binarize" / "native"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_core_is_clean_under_sanitizers(tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None or not NATIVE.is_dir():
        pytest.skip("needs cmake and the sources")
    options = ["-DBINARIZE_BUILD_TESTS=ON", "-DBINARIZE_SANITIZE=address,undefined", "-DBINARIZE_WERROR=ON"]
    subprocess.run([cmake, "-S", str(NATIVE), "-B", str(tmp_path), *options], check=True, capture_output=True)
    subprocess.run([cmake, "--build", str(tmp_path), "--target", "core_test"], check=True, capture_output=True)
    run = subprocess.run([str(tmp_path / "tests" / "core_test"), "400"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all passed" in run.stdout
