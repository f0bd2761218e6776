"""Finds the op library, registers it with ONNX Runtime and asks it which instruction set it runs on."""

from __future__ import annotations

import re
import sys
import weakref
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import onnxruntime

from binarize.errors import EnvironmentProblem

DOMAIN = "ai.binarize"
MINIMUM_ONNXRUNTIME = (1, 18)
_MESSAGE_LIMIT = 600
_INFO_NODE = "kernel_info"
_BY_INFO_NODE = f"node '{_INFO_NODE}': "
# Options objects that have our operators already; ONNX Runtime itself offers no way to ask.
_registered: weakref.WeakSet[Any] = weakref.WeakSet()

ISA_NAMES = {0: "scalar", 1: "avx2", 2: "avx512", 3: "neon", 4: "avx512bw", 5: "amx", 6: "avxvnni"}
# Instruction sets that have kernels of Int8Conv2d alone, and whose kernels the other operators run (core/dispatch.cc).
_BUILT_UPON = {"amx": "avx512", "avxvnni": "avx2"}


def _field(number: int, payload: bytes) -> bytes:
    """One length-delimited protobuf field; payloads here are shorter than 128 bytes."""
    return bytes([number << 3 | 2, len(payload)]) + payload


def _varint(number: int, value: int) -> bytes:
    """One varint protobuf field; values here are below 128."""
    return bytes([number << 3, value])


def _info_model() -> bytes:
    """The model `isa, supported = ai.binarize.KernelInfo()` as bytes, so that asking needs no onnx package."""
    domain = DOMAIN.encode()
    node = (
        _field(2, b"isa")
        + _field(2, b"supported")
        + _field(3, _INFO_NODE.encode())
        + _field(4, b"KernelInfo")
        + _field(7, domain)
    )
    shape = _field(1, _field(2, b"n"))  # one dimension of any extent
    tensor = _field(1, _varint(1, 7) + _field(2, shape))  # element type int64
    outputs = b"".join(_field(12, _field(1, name) + _field(2, tensor)) for name in (b"isa", b"supported"))
    graph = _field(1, node) + _field(2, b"g") + outputs
    opset = _field(8, _varint(2, 18)) + _field(8, _field(1, domain) + _varint(2, 1))
    return _varint(1, 8) + _field(7, graph) + opset


def _library_name() -> str:
    if sys.platform == "win32":
        return "binarize_ops.dll"
    return "libbinarize_ops.dylib" if sys.platform == "darwin" else "libbinarize_ops.so"


def _candidates(name: str) -> list[Path]:
    """Where the library may lie: beside this file (wheel) or where the distribution says (editable)."""
    found = [Path(__file__).with_name(name)]
    try:
        files = distribution("binarize-nn").files or []
    except PackageNotFoundError:
        files = []
    found += [Path(str(file.locate())) for file in files if file.name == name]
    return found


def library_path() -> Path:
    """Path of the op library, for use with ONNX Runtime from any language.

    Raises:
        EnvironmentProblem: the library was not installed.
    """
    name = _library_name()
    for path in _candidates(name):
        if path.is_file():
            return path.resolve()
    raise EnvironmentProblem(
        f"The op library {name} is not installed.",
        hint="pip install --force-reinstall binarize-nn (an editable checkout: pip install -e .)",
    )


def check_onnxruntime() -> None:
    """Refuses an ONNX Runtime without the C interface the op library needs.

    Raises:
        EnvironmentProblem: onnxruntime is older than 1.18.
    """
    version = onnxruntime.__version__
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if parts < MINIMUM_ONNXRUNTIME:
        raise EnvironmentProblem(
            f"onnxruntime {version} is too old: binarize needs 1.18 or newer.",
            hint="pip install --upgrade 'onnxruntime>=1.18'",
        )


def register(options: onnxruntime.SessionOptions) -> None:
    """Registers the operators of `ai.binarize` with session options of plain `onnxruntime`.

    `binarize.InferenceSession` does this for you. Calling it again with the same object does nothing: ONNX
    Runtime would keep both registrations and refuse the session.

    Raises:
        EnvironmentProblem: onnxruntime is too old, or the library is missing or cannot be loaded.
    """
    if options in _registered:
        return
    check_onnxruntime()
    path = library_path()
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime raises its own classes and plain RuntimeError
        raise EnvironmentProblem(
            f"onnxruntime {onnxruntime.__version__} cannot load the op library {path}: {error}",
            hint="pip install --force-reinstall binarize-nn",
        ) from error
    _registered.add(options)


def active_isa() -> str:
    """Instruction set the kernels run on here, one of `ISA_NAMES`.

    The environment variable `BINARIZE_ISA` forces one; it is read when a session is created.

    Raises:
        EnvironmentProblem: the library cannot be used, or `BINARIZE_ISA` names what this machine lacks.
    """
    return _kernel_info()[0]


def kernels_of(op: str, isa: str) -> str:
    """Instruction set of the kernels that the operator `op` runs where `isa` is the active one."""
    return isa if op == "Int8Conv2d" else _BUILT_UPON.get(isa, isa)


def supported_isas() -> tuple[str, ...]:
    """All instruction sets `BINARIZE_ISA` may name here, the best one first. Raises what `active_isa` raises."""
    return _kernel_info()[1]


def _kernel_info() -> tuple[str, tuple[str, ...]]:
    """What the operator KernelInfo answers."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    register(options)
    try:
        session = onnxruntime.InferenceSession(_info_model(), options, providers=["CPUExecutionProvider"])
        active, supported = session.run(None, {})
    except Exception as error:
        raise EnvironmentProblem(
            f"The op library does not run: {own_words(error).split(_BY_INFO_NODE)[-1]}",
            hint="Unset BINARIZE_ISA to let the library choose.",
        ) from error
    names = [ISA_NAMES.get(int(isa), f"unknown ({int(isa)})") for isa in (*active, *supported)]
    return names[0], tuple(names[1:])


def own_words(error: Exception) -> str:
    """What ONNX Runtime said, without the source locations and codes it puts in front, and of readable length."""
    text = re.sub(r"\S*/onnxruntime/\S+:\d+ ", "", str(error))
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text).strip()
    return text if len(text) <= _MESSAGE_LIMIT else text[:_MESSAGE_LIMIT] + " …"
