"""Read a file of a known kind: the safe readers, and the unsafe ones that need the user's trust."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from binarize.errors import UnsupportedModelError
from binarize.loading.archives import open_archive
from binarize.loading.exported import read_exported
from binarize.loading.names import dangerous, foreign
from binarize.loading.objects import restore
from binarize.loading.sniff import Sniffed, damaged, sniff_file

_MAX_SHARDS = 1000
_CHECKPOINTS = ("checkpoint", "legacy checkpoint", "tar checkpoint")
_EXPORT_HINT = "where the model is at hand: torch.save(model.state_dict(), 'weights.pt'), then load that"
_REFUSED = {
    "aoti": "A compiled AOTInductor package holds machine code, not a model to convert",
    "onnx": "An ONNX model has its BatchNorm folded and cannot be fine-tuned; ONNX is written here, not read",
    "pickle": "A plain pickle runs code when it is opened; binarize reads what torch.save wrote",
}


def read(path: Path, sniffed: Sniffed, trust_pickle: bool = False) -> Any:
    """Load the content of a model file onto the CPU; runs no code of the file unless `trust_pickle`.

    Raises:
        UnsupportedModelError: not a model file, damaged, or an attack.
    """
    if sniffed.kind in _CHECKPOINTS:
        return _checkpoint(path, sniffed, trust_pickle)
    if sniffed.kind == "safetensors":
        return _safetensors(path)
    if sniffed.kind == "sharded index":
        return _sharded(path)
    if sniffed.kind == "torchscript":
        return _as_data(path, sniffed)
    if sniffed.kind == "pt2":
        return _exported(path)
    if sniffed.kind in _REFUSED:
        raise UnsupportedModelError(f"{_REFUSED[sniffed.kind]}.", layer=str(path), hint=_EXPORT_HINT)
    raise UnsupportedModelError(
        f"Not a model file: it is {sniffed.detail}.",
        layer=str(path),
        hint="give weights saved by torch.save (.pt, .pth) or safetensors",
    )


def _checkpoint(path: Path, sniffed: Sniffed, trust_pickle: bool) -> Any:
    """What torch.save wrote: plain weights by torch's own safe reader, whole modules by ours."""
    try:
        return _weights_only(path, sniffed)
    except Exception as error:  # torch.load raises whatever its parsers raise on a bad file
        beyond = foreign(sniffed.globals)
        if not beyond and sniffed.kind != "tar checkpoint":
            raise damaged(path, f"The checkpoint is truncated or damaged ({_brief(error)})") from error
    if trust_pickle:
        return _trusted(path)
    if bad := dangerous(beyond):
        raise _hostile(path, bad)
    return _as_data(path, sniffed)


def _weights_only(path: Path, sniffed: Sniffed) -> Any:
    mapped = sniffed.kind == "checkpoint" and sniffed.stored
    with _quiet(), torch.serialization.safe_globals(_harmless()):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _as_data(path: Path, sniffed: Sniffed) -> Any:
    try:
        return restore(open_archive(path, sniffed))
    except Exception as error:  # whatever the parsers of zip, tar and pickle raise on a bad file
        raise damaged(path, f"The file is truncated or damaged ({_brief(error)})") from error


def _exported(path: Path) -> dict[str, torch.Tensor]:
    try:
        return read_exported(path)
    except Exception as error:  # whatever the parsers of zip, JSON and pickle raise on a bad file
        raise damaged(path, f"The torch.export archive is damaged or of an unknown layout ({_brief(error)})") from error


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


def _hostile(path: Path, bad: tuple[str, ...]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"Refused: opening this file would run {', '.join(bad[:3])}, which no model needs. "
        "Its code was not run (only --trust-pickle would run it).",
        layer=str(path),
        hint="do not trust this file; get the weights elsewhere, as safetensors or a state_dict",
    )


def _trusted(path: Path) -> Any:
    """Unpickle a file that the user trusts; its classes may lie in the current directory."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with _quiet():
            return torch.load(path, map_location="cpu", weights_only=False)
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


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors has its own error type, built in Rust
        raise damaged(path, f"The safetensors file is damaged ({_brief(error)})") from error


def _sharded(path: Path) -> dict[str, torch.Tensor]:
    """The weights of an index (`model.safetensors.index.json`, `pytorch_model.bin.index.json`) and its shards."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = set(weight_map.values())
        if len(names) > _MAX_SHARDS:
            raise damaged(path, f"The index names {len(names)} shards, more than {_MAX_SHARDS}")
        # Only the names count: a shard lies beside its index, whatever path it claims.
        shards = sorted({path.parent / Path(name).name for name in names})
        place = {tensor: Path(name).name for tensor, name in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, "The index has no readable weight_map") from error
    state: dict[str, torch.Tensor] = {}
    for shard in shards:
        if not shard.is_file():
            raise damaged(path, f"The shard {shard.name} is missing")
        sniffed = sniff_file(shard)
        if sniffed.kind not in ("safetensors", *_CHECKPOINTS):
            raise damaged(path, f"The shard {shard.name} is {sniffed.detail}, no weights")
        part = read(shard, sniffed)
        if not isinstance(part, dict):
            raise damaged(path, f"The shard {shard.name} holds a {type(part).__name__}, no weights")
        if lacks := [name for name, home in place.items() if home == shard.name and name not in part]:
            raise damaged(path, f"The shard {shard.name} lacks {lacks[0]}, which the index says is in it")
        state.update({name: value for name, value in part.items() if place.get(name, shard.name) == shard.name})
    return state


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}".rstrip(": .")


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
