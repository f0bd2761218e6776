"""Read a file of a known kind: the safe readers, and the unsafe ones that need the user's trust."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from binarize.errors import BinarizeError, UnsupportedModelError
from binarize.loading.opcodes import dangerous, foreign
from binarize.loading.sniff import Sniffed, damaged, sniff_file

_MAX_SHARDS = 1000
_EXPORT_HINT = "where the model is at hand: torch.save(model.state_dict(), 'weights.pt'), then load that"
_REFUSED = {
    "pt2": "A torch.export archive has its BatchNorm frozen and cannot be fine-tuned",
    "aoti": "A compiled AOTInductor package holds machine code, not a model to convert",
    "onnx": "An ONNX model has its BatchNorm folded and cannot be fine-tuned; ONNX is written here, not read",
    "pickle": "A plain pickle runs code when it is opened; binarize reads what torch.save wrote",
}


def read(path: Path, sniffed: Sniffed, trust_pickle: bool = False) -> Any:
    """Load the content of a model file onto the CPU; runs no code of the file unless `trust_pickle`.

    Raises:
        UnsupportedModelError: not a model file, damaged, or it holds more than weights and is not trusted.
    """
    if sniffed.kind in ("checkpoint", "legacy checkpoint"):
        return _checkpoint(path, sniffed, trust_pickle)
    if sniffed.kind == "safetensors":
        return _safetensors(path)
    if sniffed.kind == "safetensors index":
        return _sharded(path)
    if sniffed.kind == "torchscript":
        return _torchscript(path, trust_pickle)
    if sniffed.kind in _REFUSED:
        raise UnsupportedModelError(f"{_REFUSED[sniffed.kind]}.", layer=str(path), hint=_EXPORT_HINT)
    raise UnsupportedModelError(
        f"Not a model file: it is {sniffed.detail}.",
        layer=str(path),
        hint="give weights saved by torch.save (.pt, .pth) or safetensors",
    )


def _checkpoint(path: Path, sniffed: Sniffed, trust_pickle: bool) -> Any:
    mapped = sniffed.kind == "checkpoint" and sniffed.stored
    try:
        with _quiet(), torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load raises whatever its parsers raise on a bad file
        beyond = foreign(sniffed.globals)
        if not beyond:
            raise damaged(path, f"The checkpoint is truncated or damaged ({_brief(error)})") from error
        if not trust_pickle:
            raise _untrusted(path, beyond) from error
    return _trusted(path, lambda: torch.load(path, map_location="cpu", weights_only=False))


def _harmless() -> list[Any]:
    """Classes that training scripts store beside the weights and that do nothing when rebuilt.

    Paths become pure paths, which also lets a file from Windows open elsewhere.
    """
    pure = {
        "PosixPath": pathlib.PurePosixPath,
        "WindowsPath": pathlib.PureWindowsPath,
        "PurePosixPath": pathlib.PurePosixPath,
        "PureWindowsPath": pathlib.PureWindowsPath,
    }
    numpy_core = np.float64(0).__reduce__()[0]
    rebuild = np.zeros(1).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in np.typecodes["All"]}
    modules = ("pathlib", "pathlib._local")
    paths = [(cls, f"{module}.{name}") for name, cls in pure.items() for module in modules]
    numpys = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in (("scalar", numpy_core), ("_reconstruct", rebuild))
    ]
    classes = [argparse.Namespace, collections.defaultdict, dict, list, np.ndarray, np.dtype]
    return [*classes, *dtypes, *paths, *numpys]


def _untrusted(path: Path, beyond: tuple[str, ...]) -> UnsupportedModelError:
    shown = ", ".join(beyond[:5]) + (f" and {len(beyond) - 5} more" if len(beyond) > 5 else "")
    if bad := dangerous(beyond):
        return UnsupportedModelError(
            f"Refused: opening this file would run {', '.join(bad[:3])}, which no model needs. "
            "Its code was not run (only --trust-pickle would run it).",
            layer=str(path),
            hint="do not trust this file; get the weights elsewhere, as safetensors or a state_dict",
        )
    return UnsupportedModelError(
        f"The file holds whole Python objects, not just weights: {shown}. "
        "Opening them runs code from the file, so they were not opened.",
        layer=str(path),
        hint="if you trust its source, --trust-pickle runs the file's code; better, save model.state_dict() "
        "and give --arch",
    )


def _trusted(path: Path, reader: Callable[[], Any]) -> Any:
    """Run an unsafe reader on a file that the user trusts; its classes may lie in the current directory."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with _quiet():
            return reader()
    except BinarizeError:
        raise
    except (ImportError, AttributeError) as error:
        raise UnsupportedModelError(
            f"The pickled model needs a class that cannot be imported: {error}.",
            layer=str(path),
            hint="run from the folder that holds the model's code, or install its package",
        ) from error
    except (Exception, SystemExit) as error:
        raise damaged(path, f"Opening the trusted file failed ({_brief(error)})") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _torchscript(path: Path, trust_pickle: bool) -> dict[str, torch.Tensor]:
    if not trust_pickle:
        raise UnsupportedModelError(
            "A TorchScript file is a program; opening it may run its code, so it was not opened.",
            layer=str(path),
            hint="if you trust its source, --trust-pickle takes its weights and matches the architecture",
        )
    program = _trusted(path, lambda: torch.jit.load(path, map_location="cpu"))
    state: dict[str, torch.Tensor] = program.state_dict()
    return state


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors has its own error type, built in Rust
        raise damaged(path, f"The safetensors file is damaged ({_brief(error)})") from error


def _sharded(path: Path) -> dict[str, torch.Tensor]:
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [path.parent / Path(name).name for name in names[:_MAX_SHARDS]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, "The safetensors index has no readable weight_map") from error
    state: dict[str, torch.Tensor] = {}
    for shard in shards:
        if not shard.is_file():
            raise damaged(path, f"The shard {shard.name} is missing")
        if sniff_file(shard).kind != "safetensors":
            raise damaged(path, f"The shard {shard.name} is no safetensors file")
        state.update(_safetensors(shard))
    return state


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}".rstrip(": .")


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
