"""A binary module on disk: its weights, and how to build it again, without pickled code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from binarize.config import Config
from binarize.errors import UnsupportedModelError, UsageError
from binarize.files import atomic_output
from binarize.loading import BINARY_FORMAT, Loaded, resolve, resolve_recorded
from binarize.surgery import binarize_model, example_like, report_of


def save_binary(path: str | Path, module: nn.Module, source: Loaded) -> None:
    """Write a binary `module` made from `source`; it can be loaded again if the architecture has a name."""
    report = report_of(module)
    state = {
        "format": BINARY_FORMAT,
        "arch": None if source.arch_how == "pickled" else source.arch,
        "num_classes": source.num_classes,
        "config": report.config,
        "example_shapes": module.example_shapes,
        "example_structure": module.example_structure,
        "example_values": module.example_values,
        "results": report.results,
        "state_dict": module.state_dict(),
    }
    with atomic_output(path) as temporary:
        torch.save(state, temporary)


def is_binary_file(path: str | Path) -> bool:
    """Whether the file at `path` was written by `save_binary`."""
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
    except Exception:
        return False
    return isinstance(state, dict) and state.get("format") == BINARY_FORMAT


def load_binary(path: str | Path, arch: str | None = None) -> nn.Module:
    """The binary module at `path`, in eval mode.

    Args:
        arch: needed unless the architecture is torchvision's or timm's: a file may not choose other code to run.

    Raises:
        UsageError: no architecture is known, or the file names one outside of the libraries.
        UnsupportedModelError: the file is no binary module, or does not fit the architecture.
    """
    state = _read(path)
    recorded = state["arch"]
    hint = f"pass --arch {recorded}, if that is your code" if recorded else "pass --arch"
    architecture = resolve(arch) if arch else resolve_recorded(recorded, path, hint)
    inputs = _example_inputs(state, path)
    model = architecture.build_for(state["num_classes"])
    module = binarize_model(model, inputs, Config().updated(state["config"], str(path)))
    try:
        module.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"the weights do not fit {architecture.spec}: {str(error).splitlines()[-1].strip()}", layer=str(path)
        ) from error
    report_of(module).results.update(state["results"])
    return module.eval()


_KINDS: dict[str, type | tuple[type, ...]] = {
    "arch": (str, type(None)),
    "num_classes": (int, type(None)),
    "config": dict,
    "example_shapes": list,
    "example_structure": str,
    "results": dict,
    "state_dict": dict,
}
"""What a file holds; those of before whole-number inputs were kept have no values but tensors."""

_MAX_ELEMENTS = 1 << 28
"""Of an example input: far above any real one, and below what memory holds."""


def _read(path: str | Path) -> dict[str, Any]:
    """The contents of a binary module's file, of the right types."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        assert state["format"] == BINARY_FORMAT
    except FileNotFoundError as error:
        raise UsageError("there is no such file", layer=str(path)) from error
    except Exception as error:
        raise UnsupportedModelError(
            "not a binary module written by binarize",
            layer=str(path),
            hint="binarize convert makes an ONNX file of a float model, binarize finetune a binary module",
        ) from error
    for key, kind in _KINDS.items():
        if not isinstance(state.get(key, ...), kind):
            raise _damaged(path, f"{key!r} is missing or of the wrong type")
    return state


def _example_inputs(state: dict[str, Any], path: str | Path) -> Any:
    """Inputs like those that `apply` saw; float tensors hold zeros."""
    values = state.get("example_values", state.get("example_integers", {}))  # the name until all leaves were kept
    try:
        if any(math.prod(shape) > _MAX_ELEMENTS for shape in state["example_shapes"]):
            raise ValueError(f"an input of {state['example_shapes']}")
        return example_like(state["example_shapes"], values, state["example_structure"], torch.zeros)
    except UnsupportedModelError as error:
        error.layer = str(path)
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, StopIteration) as error:
        raise _damaged(path, f"its example inputs cannot be made: {error or 'a shape is missing'}") from error


def _damaged(path: str | Path, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the binary module is damaged: {what}", layer=str(path), hint="copy it again, or write it again with finetune"
    )
