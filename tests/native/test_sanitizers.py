"""Builds core and library with sanitizers; runs the core alone, and the operators' tests in ONNX Runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "binarize" / "native"
RUNTIME_LIBRARIES = {"address,undefined": "libasan.so", "thread": "libtsan.so"}
"""What must be in the process before anything else is."""
# ONNX Runtime is not instrumented: what it does with memory can be neither judged nor reported.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",
}
IN_SESSIONS = ("test_kernels", "test_pointwise", "test_int8_conv", "test_malformed", "test_library")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", params=list(RUNTIME_LIBRARIES))
def sanitizers(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def build(sanitizers: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with core test and library, instrumented."""
    cmake = shutil.which("cmake")
    if cmake is None or not NATIVE.is_dir():
        pytest.skip("needs cmake and the sources")
    folder = tmp_path_factory.mktemp("sanitized")
    options = ["-DBINARIZE_BUILD_TESTS=ON", f"-DBINARIZE_SANITIZE={sanitizers}", "-DBINARIZE_WERROR=ON"]
    subprocess.run([cmake, "-S", str(NATIVE), "-B", str(folder), *options], check=True, capture_output=True)
    targets = ["--target", "core_test", "binarize_ops"]
    subprocess.run([cmake, "--build", str(folder), "--parallel", "2", *targets], check=True, capture_output=True)
    return folder


def test_core_is_clean_under_sanitizers(build: Path) -> None:
    run = subprocess.run([str(build / "tests" / "core_test"), "400"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all passed" in run.stdout


def test_operators_are_clean_in_onnxruntime(build: Path, sanitizers: str) -> None:
    """The operators' own tests once more, fuzzing and concurrent sessions among them, with the instrumented library."""
    preloaded = [runtime_library(build, name) for name in (RUNTIME_LIBRARIES[sanitizers], "libstdc++.so.6")]
    environment = {
        **os.environ,
        **OPTIONS,
        "LD_PRELOAD": " ".join(preloaded),
        "BINARIZE_SANITIZED_LIBRARY": str(build / "libbinarize_ops.so"),
    }
    for name in [name for name in environment if name.startswith("PYTEST_")]:  # this one is no part of the outer run
        del environment[name]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--confcutdir={HERE}"]
    # Not captured: a report is written and the process ended at once.
    tests = [str(HERE / f"{name}.py") for name in IN_SESSIONS]
    command = [sys.executable, "-m", "pytest", "--capture=no", *options, *tests]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parents[1])
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-6000:]
    assert "passed" in run.stdout and "Sanitizer" not in run.stdout + run.stderr


def runtime_library(build: Path, name: str) -> str:
    """The path of a library that comes with the compiler of a build."""
    lines = (build / "CMakeCache.txt").read_text().splitlines()
    compiler = next(line.split("=", 1)[1] for line in lines if line.startswith("CMAKE_CXX_COMPILER:"))
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_file():
        pytest.skip(f"{compiler} has no {name} to load into Python")
    return str(path.resolve())
