"""A binary module on disk: its weights, and how to build it again, without pickled code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_unflatten, treespec_loads

from binarize.config import Config
from binarize.errors import UnsupportedModelError, UsageError
from binarize.files import atomic_output
from binarize.loading import BINARY_FORMAT, Loaded, resolve, resolve_recorded
from binarize.surgery import binarize_model, report_of


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
        "example_integers": module.example_integers,
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
    recorded = state["arch"]
    hint = f"pass --arch {recorded}, if that is your code" if recorded else "pass --arch"
    architecture = resolve(arch) if arch else resolve_recorded(recorded, path, hint)
    model = architecture.build_for(state["num_classes"])
    integers = state.get("example_integers", {})
    tensors = [integers.get(i, torch.zeros(shape)) for i, shape in enumerate(state["example_shapes"])]
    inputs = tree_unflatten(tensors, treespec_loads(state["example_structure"]))
    module = binarize_model(model, inputs, Config().updated(state["config"], str(path)))
    try:
        module.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"the weights do not fit {architecture.spec}: {str(error).splitlines()[-1].strip()}", layer=str(path)
        ) from error
    report_of(module).results.update(state["results"])
    return module.eval()
