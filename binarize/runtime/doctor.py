"""What `binarize doctor` finds out: can this machine run binary models? As data, without torch or onnx."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnxruntime

from binarize.errors import BinarizeError
from binarize.runtime.library import (
    MINIMUM_ONNXRUNTIME,
    active_isa,
    check_onnxruntime,
    library_path,
    supported_isas,
)

Status = Literal["ok", "warn", "fail"]
SYMBOLS = ("RegisterCustomOps", "BinarizeRegisterCustomOps")
CPU_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vpopcntdq",
    "avx512_vpopcntdq",
    "avx512_vnni",
    "amx_tile",
    "amx_int8",
    "neon",
    "asimd",
)
CONVERT_PACKAGES = (
    "torch", "torchvision", "onnx", "onnxscript", "accelerate", "networkx", "safetensors", "pyarrow", "pillow"
)  # fmt: skip
TERMINAL_PACKAGES = ("typer", "rich")
MINIMUM_PYTHON = (3, 11)


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what.
        status: `fail` only for what running a binary model needs; `warn` for what converting or speed needs.
        found: what is there.
        hint: what to do unless it is ok.
    """

    name: str
    status: Status
    found: str
    hint: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at."""

    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        """The worst check's."""
        found = {check.status for check in self.checks}
        return "fail" if "fail" in found else "warn" if "warn" in found else "ok"

    @property
    def verdict(self) -> str:
        """One sentence."""
        return {
            "ok": "This machine can convert and run binary models.",
            "warn": "This machine can run binary models; see the warnings above.",
            "fail": "This machine cannot run binary models; see the failures above.",
        }[self.status]

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "verdict": self.verdict,
            "isa": next((c.found for c in self.checks if c.name == "kernels run on" and c.status == "ok"), None),
            "checks": [asdict(check) for check in self.checks],
        }


def diagnose() -> Diagnosis:
    """Look at Python, ONNX Runtime, the op library, the CPU and optional packages. Raises nothing."""
    checks = [_python(), _onnxruntime(), _library(), _symbols(), _kernels()]
    if checks[-1].status != "fail":
        checks.append(_instruction_sets())
    return Diagnosis((*checks, _cpu(), _packages("convert and train", CONVERT_PACKAGES), _terminal()))


def _python() -> Check:
    new_enough = tuple(map(int, platform.python_version_tuple()[:2])) >= MINIMUM_PYTHON
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("Python", "ok" if new_enough else "fail", found, "" if new_enough else "use Python 3.11 or newer")


def _onnxruntime() -> Check:

    def find() -> str:
        check_onnxruntime()
        return f"{onnxruntime.__version__} (needs {'.'.join(map(str, MINIMUM_ONNXRUNTIME))})"

    return _needed("ONNX Runtime", find)


def _library() -> Check:
    return _needed("op library", lambda: str(library_path()))


def _symbols() -> Check:
    """Loads the library as a C program would and looks for its entry points."""

    def find() -> str:
        library = ctypes.CDLL(str(library_path()))
        missing = [symbol for symbol in SYMBOLS if not hasattr(library, symbol)]
        if missing:
            raise OSError(f"the library lacks {', '.join(missing)}")
        return ", ".join(SYMBOLS)

    return _needed("exported symbols", find)


def _kernels() -> Check:
    """Runs one operator of ours in ONNX Runtime."""
    forced = os.environ.get("BINARIZE_ISA")
    check = _needed("kernels run on", active_isa)
    if check.status == "ok" and forced:
        return Check("kernels run on", "ok", check.found, f"forced by BINARIZE_ISA={forced}")
    if check.found == "scalar":
        return Check("kernels run on", "warn", "scalar", "this CPU has none of AVX-512, AVX2, NEON: expect no speed-up")
    return check


def _instruction_sets() -> Check:
    """What BINARIZE_ISA may name."""
    return _needed("kernels for", lambda: ", ".join(supported_isas()))


def _cpu() -> Check:
    flags = cpu_flags()
    if flags is None:
        return Check("CPU", "ok", f"{platform.processor() or platform.machine()} (flags are told on Linux only)")
    return Check("CPU", "ok", " ".join(sorted(flags)) or "none of the vector extensions our kernels use")


def cpu_flags(cpuinfo: str | Path = "/proc/cpuinfo") -> set[str] | None:
    """Those of the CPU's flags that our kernels ask for; None where the system does not tell."""
    try:
        text = Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    found = set(lines[0].split()) if lines else set()
    spelling = {"avx512_vpopcntdq": "avx512vpopcntdq", "asimd": "neon"}
    return {spelling.get(flag, flag) for flag in found & set(CPU_FLAGS)}


def _packages(name: str, packages: tuple[str, ...]) -> Check:
    found = {package: version_of(package) for package in packages}
    text = ", ".join(f"{package} {version}" for package, version in found.items() if version)
    missing = [package for package, version in found.items() if version is None]
    if not missing:
        return Check(name, "ok", text)
    hint = f'missing: {", ".join(missing)}; pip install "binarize-nn[convert]"'
    return Check(name, "warn", text or "not installed", hint)


def _terminal() -> Check:
    return _packages("command line", TERMINAL_PACKAGES)


def version_of(package: str) -> str | None:
    """The installed version, None if there is none; nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _needed(name: str, look: Callable[[], str]) -> Check:
    """A check that running needs: what `look` returns, or why it raised."""
    try:
        return Check(name, "ok", look())
    except BinarizeError as error:
        return Check(name, "fail", error.message, error.hint or "")
    except (OSError, RuntimeError) as error:
        return Check(name, "fail", str(error), "pip install --force-reinstall binarize-nn")
