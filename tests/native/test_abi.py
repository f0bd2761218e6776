"""Our declaration of ONNX Runtime's C interface against the official header."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "binarize" / "native"
OURS, COMPARISON = NATIVE / "ort" / "ort_abi.h", NATIVE / "tests" / "abi_test.cc"
HEADER = "onnxruntime_c_api.h"
FOLDERS = (os.environ.get("ONNXRUNTIME_INCLUDE"), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime")

pytestmark = pytest.mark.skipif(not OURS.is_file(), reason="needs the sources")


def test_every_function_and_field_that_we_declare_is_compared() -> None:
    text = OURS.read_text(encoding="utf-8")
    for struct, macro in (("OrtApi", "SAME_SLOT"), ("OrtCustomOp", "SAME_FIELD")):
        body = text.split(f"struct {struct} {{", 1)[1].split("\n};", 1)[0]
        declared = set(re.findall(r"\(BINARIZE_ORT_CALL\* (\w+)\)", body))
        compared = set(re.findall(rf"^{macro}\((\w+)\);", COMPARISON.read_text(encoding="utf-8"), re.MULTILINE))
        assert declared and declared == compared - {"version"}


def test_slots_and_offsets_are_those_of_the_official_header() -> None:
    folder = next((f for f in FOLDERS if f and (Path(f) / HEADER).is_file()), None)
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if folder is None or compiler is None:
        pytest.skip(f"needs a C++ compiler and {HEADER}: Debian's libonnxruntime-dev, or set ONNXRUNTIME_INCLUDE")
    command = [compiler, "-std=c++17", "-fsyntax-only", "-I", folder, "-I", str(NATIVE), str(COMPARISON)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
