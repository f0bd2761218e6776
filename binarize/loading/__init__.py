"""From a model file to an `nn.Module`: tell the format, find the architecture, run no untrusted code."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from binarize.errors import BinarizeError, UnsupportedModelError, UsageError
from binarize.loading.architecture import Architecture, resolve, resolve_recorded
from binarize.loading.fitting import Fitted, load_strictly
from binarize.loading.objects import ModuleWeights
from binarize.loading.preprocessing import state_on, stated_beside, stated_by
from binarize.loading.readers import read
from binarize.loading.recognise import recognise_architecture
from binarize.loading.sniff import sniff_file
from binarize.loading.state_dict import StateDict, check_finite, check_layouts, find_state_dict

__all__ = [
    "BINARY_FORMAT",
    "Architecture",
    "Loaded",
    "is_onnx_file",
    "load_model",
    "num_outputs",
    "resolve",
    "resolve_recorded",
    "stated_by",
]

BINARY_FORMAT = "binarize-module"
"""What the binary modules that this package writes say they are."""


@dataclass(frozen=True)
class Loaded:
    """A model read from a file.

    Attributes:
        module: the model in eval mode, on the CPU; its `pretrained_cfg` says what is known of preprocessing.
        source: the path it came from.
        kind: the file's format: "checkpoint", "legacy checkpoint", "tar checkpoint", "safetensors", "sharded index",
            "torchscript", "pt2", or "pickled module" for a module that was rebuilt as it was.
        arch: its `--arch` spelling, or the class of a pickled module.
        arch_how: "given", "recognised" or "pickled".
        notes: what was chosen, dropped or assumed on the way, one sentence each.
        num_classes: outputs of the classifier; None where it cannot be told, as for detectors.
    """

    module: nn.Module
    source: str
    kind: str
    arch: str | None
    arch_how: str
    notes: tuple[str, ...]
    num_classes: int | None


def load_model(
    path: str | Path, arch: str | None = None, trust_pickle: bool = False, *, num_classes: int | None = None
) -> Loaded:
    """Load a model from a checkpoint, state dict, safetensors, TorchScript, torch.export or pickled file.

    Args:
        path: the file.
        arch: `torchvision:NAME`, `timm:NAME`, `package.module:factory` or `file.py:factory`; without it a
            torchvision or timm architecture is recognised from the weights.
        trust_pickle: unpickle a module of the user's own class, which runs code; without it only its weights
            are read, and modules made of torch's, torchvision's and timm's layers are rebuilt safely.
        num_classes: given to the architecture; by default what the file's head says.

    Raises:
        UsageError: the path or the architecture cannot be used as given.
        UnsupportedModelError: the file is no model, is damaged, unsafe, or fits no architecture.
        EnvironmentProblem: the architecture's library is not installed.
    """
    if not isinstance(path, str | os.PathLike):
        raise UsageError(
            f"The path is a {type(path).__name__}.", hint="give a file; binarize.apply takes a model itself"
        )
    if not isinstance(arch, str | None):
        raise UsageError(
            f"arch is a {type(arch).__name__}.",
            hint="name its code, such as package.module:factory, or load the weights yourself for binarize.apply",
        )
    file = _checked_path(Path(path).expanduser())
    architecture = resolve(arch) if arch is not None else None
    try:
        sniffed = sniff_file(file)
        content = read(file, sniffed, trust_pickle)
        _check_not_ours(content, path)
        found, notes = find_state_dict(content)
        if isinstance(found, nn.Module):
            return _from_module(file, found, architecture, notes, num_classes)
        return _from_state(file, sniffed.kind, found, architecture, notes, num_classes)
    except BinarizeError as error:
        # Errors name the file they concern, those of the architecture excepted.
        if error.layer is None and isinstance(error, UnsupportedModelError):
            error.layer = str(path)
        raise
    except OSError as error:
        raise UsageError(f"The file cannot be read: {error.strerror or error}.", layer=str(path)) from error


def is_onnx_file(path: str | Path) -> bool:
    """Whether the file at `path` is an ONNX model, by its name or its first bytes."""
    path = Path(path)
    try:
        return path.suffix == ".onnx" or (path.is_file() and sniff_file(path).kind == "onnx")
    except (UnsupportedModelError, OSError):
        return False


def _check_not_ours(content: Any, path: str | Path) -> None:
    """Refuse what fine-tuning wrote: weights of a binary net, which no float architecture fits."""
    if not isinstance(content, Mapping):
        return
    if content.get("format") == BINARY_FORMAT:
        raise UsageError(
            "it is a binary module already, and a float model is needed here",
            layer=str(path),
            hint=f"binarize export {path} --out NET.onnx, or binarize eval {path} --data IMAGES",
        )
    if {"fingerprint", "torch_rng", "python_rng"} <= content.keys():
        raise UsageError(
            "it is the checkpoint of a run of binarize, no model",
            layer=str(path),
            hint="the command that wrote it goes on from it, and writes the binary module at its end",
        )


def num_outputs(module: nn.Module) -> int | None:
    """Outputs of the last linear or conv layer as defined; None without one, and for detectors."""
    last = None
    if type(module).__module__.startswith("torchvision.models.detection"):
        return None
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            last = layer.out_features
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            last = layer.out_channels
    return last


def _from_state(
    file: Path,
    kind: str,
    state: StateDict,
    architecture: Architecture | None,
    notes: list[str],
    num_classes: int | None,
) -> Loaded:
    check_layouts(state)
    if architecture is not None:
        name, how = architecture.spec, "given"
        fitted = load_strictly(architecture, state, num_classes)
    else:
        how = "recognised"
        name, fitted, sure = _recognised(state)
        notes = [*notes, *sure]
    check_finite(state)
    classes = fitted.num_classes or num_outputs(fitted.module)
    state_on(fitted.module, stated_beside(file, name, fitted.module), own=False)
    return Loaded(fitted.module, str(file), kind, name, how, (*notes, *fitted.notes), classes)


def _recognised(state: StateDict) -> tuple[str, Fitted, list[str]]:
    try:
        return recognise_architecture(state)
    except UnsupportedModelError as error:
        if isinstance(state, ModuleWeights) and not state.scripted:
            error.hint = f"{error.hint}; or, if you trust the file's source, --trust-pickle runs its code"
        raise


def _from_module(
    file: Path,
    module: nn.Module,
    architecture: Architecture | None,
    notes: list[str],
    num_classes: int | None,
) -> Loaded:
    kind = "pickled module"
    if architecture is not None:
        loaded = _from_state(file, kind, _state_of(module), architecture, notes, num_classes)
        return replace(loaded, notes=(*loaded.notes, "Took the pickled model's weights into --arch."))
    check_layouts(_state_of(module))
    check_finite(_state_of(module))
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    if any(p.is_floating_point() and p.element_size() < 4 for p in module.parameters()):
        module = module.float()
        notes = [*notes, "Half-precision weights were converted to float32."]
    state_on(module, stated_beside(file, None, module), own=True)
    return Loaded(module.eval(), str(file), kind, name, "pickled", tuple(notes), num_outputs(module))


def _state_of(module: nn.Module) -> StateDict:
    state: dict[str, Any] = module.state_dict()
    return {name: value for name, value in state.items() if hasattr(value, "untyped_storage")}


def _checked_path(path: Path) -> Path:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.name, _names_beside(path), 3)
        hint = f"near names there: {', '.join(near)}" if near else "check the path and the current directory"
        raise UsageError("There is no such file.", layer=str(path), hint=hint) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"The path cannot be used: {error}.", layer=str(path)) from error
    if stat.S_ISDIR(mode):
        inside = [p.name for p in sorted(path.glob("*")) if p.suffix in (".pt", ".pth", ".safetensors", ".th")]
        hint = f"give one of the files in it: {', '.join(inside[:4])}" if inside else "give a model file"
        raise UsageError("This is a directory, not a model file.", layer=str(path), hint=hint)
    if not stat.S_ISREG(mode):
        raise UsageError("This is not a regular file.", layer=str(path), hint="give a model file")
    return path


def _names_beside(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []
