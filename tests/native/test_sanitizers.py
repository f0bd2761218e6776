"""Builds core and library with sanitizers; runs the core alone, and the operators' tests in ONNX Runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from binarize.runtime.library import supported_isas

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "binarize" / "native"
RUNTIME_LIBRARIES = {"address,undefined": "libasan.so", "thread": "libtsan.so"}
"""What must be in the process before anything else is."""
# ONNX Runtime is not instrumented: what it does with memory can be neither judged nor reported. It, Python and torch
# lose memory of their own: leak_check.py asks for leaks, and only those with a function of ours in their stack count.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:leak_check_at_exit=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",
}
CASES = {"address,undefined": 400, "thread": 100}
"""Random layers for the core alone. Threads share them in the same few ways, whatever their shapes."""
LEAK_CHECK = "leak_check"
"""The plugin, a module beside this one."""
IN_SESSIONS = ("test_kernels", "test_pointwise", "test_int8_conv", "test_malformed", "test_library")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("sanitizers", list(RUNTIME_LIBRARIES))
def test_core_and_operators_are_clean_under_sanitizers(sanitizers: str, tmp_path: Path) -> None:
    """One test for both, because the build takes longest and processes share none."""
    cmake = shutil.which("cmake")
    if cmake is None or not NATIVE.is_dir():
        pytest.skip("needs cmake and the sources")
    isas = supported_isas()
    if sanitizers == "thread":
        # Kernels of all are given their threads' shares by the same code: the best, which may be built on the next, and
        # the plainest are enough for races.
        isas = tuple(dict.fromkeys((*isas[:2], "scalar")))
    compile_native(cmake, tmp_path, sanitizers, isas, ("core_test", "binarize_ops"))
    run_core_test(tmp_path, CASES[sanitizers])
    run_operators(tmp_path, sanitizers)


def test_the_core_makes_no_wild_pointer(tmp_path: Path) -> None:
    """The checks that the build above leaves out (CMakeLists.txt says why), on the scalar kernels, whose templates are
    those of all instruction sets."""
    cmake = shutil.which("cmake")
    if cmake is None or not NATIVE.is_dir():
        pytest.skip("needs cmake and the sources")
    compile_native(cmake, tmp_path, "undefined", ("scalar",), ("core_test",))
    run_core_test(tmp_path, 400)


def compile_native(cmake: str, folder: Path, sanitizers: str, isas: Sequence[str], targets: Sequence[str]) -> None:
    """Those targets with the kernels that can run here: instrumented ones take a minute each to compile."""
    options = ["-DBINARIZE_BUILD_TESTS=ON", f"-DBINARIZE_SANITIZE={sanitizers}", "-DBINARIZE_WERROR=ON"]
    options.append(f"-DBINARIZE_ISAS={';'.join(isas)}")
    subprocess.run([cmake, "-S", str(NATIVE), "-B", str(folder), *options], check=True, capture_output=True)
    command = [cmake, "--build", str(folder), "--parallel", "2", "--target", *targets]
    subprocess.run(command, check=True, capture_output=True)


def run_core_test(build: Path, cases: int) -> None:
    run = subprocess.run([str(build / "tests" / "core_test"), str(cases)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all passed" in run.stdout


def run_operators(build: Path, sanitizers: str) -> None:
    """The operators' own tests once more, fuzzing and concurrent sessions among them, with the instrumented library."""
    preloaded = [runtime_library(build, name) for name in (RUNTIME_LIBRARIES[sanitizers], "libstdc++.so.6")]
    report = build / "report"
    options = OPTIONS | {"ASAN_OPTIONS": f"{OPTIONS['ASAN_OPTIONS']}:log_path={report}"}
    environment = {
        **os.environ,
        **options,
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "LD_PRELOAD": " ".join(preloaded),
        "BINARIZE_SANITIZED_LIBRARY": str(build / "libbinarize_ops.so"),
    }
    for name in [name for name in environment if name.startswith("PYTEST_")]:  # this one is no part of the outer run
        del environment[name]
    arguments = ["-p", "no:cacheprovider", "-p", "no:xdist", f"--confcutdir={HERE}"]
    if "address" in sanitizers:
        arguments += ["-p", LEAK_CHECK]
    # Not captured: a report is written and the process ended at once.
    tests = [str(HERE / f"{name}.py") for name in IN_SESSIONS]
    command = [sys.executable, "-m", "pytest", "--capture=no", *arguments, *tests]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parents[1])
    reports = "".join(path.read_text(errors="replace") for path in build.glob(f"{report.name}.*"))
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-6000:] + reports[-6000:]
    assert "passed" in run.stdout and "Sanitizer" not in run.stdout + run.stderr
    assert "ERROR: AddressSanitizer" not in reports and "Too many leaks" not in reports
    assert "address" not in sanitizers or "leaks were looked for" in run.stdout
    leaks = own_leaks(reports)
    assert not leaks, "\n\n".join(leaks)


def own_leaks(report: str) -> list[str]:
    """The leaks in LeakSanitizer's report with a function of ours in their stack: its source, or the library."""
    leaks = [block for block in report.split("\n\n") if " leak of " in block]
    return [leak for leak in leaks if f"{NATIVE}{os.sep}" in leak or "libbinarize_ops" in leak]


def test_a_leak_is_ours_where_our_function_allocated() -> None:
    theirs = "Direct leak of 8 byte(s) in 1 object(s) allocated from:\n    #0 0x1 in malloc\n    #1 0x2 (libc.so+0x3)"
    named = f"{theirs}\n    #2 0x4 in Pool {NATIVE}/ort/pool.cc:84"
    unnamed = f"{theirs}\n    #2 0x4  (/somewhere/libbinarize_ops.so+0x5)"
    header, summary = "==1==ERROR: LeakSanitizer: detected memory leaks", "SUMMARY: 24 byte(s) leaked"
    assert own_leaks("\n\n".join([header, theirs, named, unnamed, summary])) == [named, unnamed]


def runtime_library(build: Path, name: str) -> str:
    """The path of a library that comes with the compiler of a build."""
    lines = (build / "CMakeCache.txt").read_text().splitlines()
    compiler = next(line.split("=", 1)[1] for line in lines if line.startswith("CMAKE_CXX_COMPILER:"))
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_file():
        pytest.skip(f"{compiler} has no {name} to load into Python")
    return str(path.resolve())
