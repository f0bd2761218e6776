"""Makes the NumPy reference and the model builders importable, and forces instruction sets."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest

from binarize.runtime import library

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

SANITIZED = os.environ.get("BINARIZE_SANITIZED_LIBRARY")  # see test_sanitizers.py
if SANITIZED:
    library._candidates = lambda name: [Path(SANITIZED)]
    # It stays loaded when no session has it any more. Loaded again, it may lie where a thread's stack was, which the
    # thread sanitizer calls a race; and a report on leaks could not tell whose functions allocated what is lost.
    ctypes.CDLL(SANITIZED)


@pytest.fixture(params=["scalar", "avx2", "avxvnni", "avx512bw", "avx512", "amx", "neon"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set in turn, forced; skips what this machine lacks."""
    from op_models import available_isas

    name: str = request.param
    if name not in available_isas():
        pytest.skip(f"this machine has no {name}")
    monkeypatch.setenv("BINARIZE_ISA", name)
    return name
