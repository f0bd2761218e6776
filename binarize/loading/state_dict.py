"""Find the weights inside whatever a checkpoint holds, clean their names, and check their values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import UnsupportedModelError
from binarize.loading.objects import ModuleWeights
from binarize.loading.opcodes import Record

StateDict = dict[str, Tensor]

_EMA_KEYS = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
_KEYS = (*_EMA_KEYS, "state_dict", "model_state_dict", "model", "net", "weights", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "ema_model.")
# Counters that profilers and averaging leave behind; no layer computes with them.
_LITTER = ("total_ops", "total_params", "n_averaged")
# Names that torchvision's own downloads still carry and its layers convert while loading.
_OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$"), r"\1\2"),
    (re.compile(r"((?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
)
_MAX_DEPTH = 4
# Far above any real broadcast buffer; below it, expanding is harmless.
_MAX_EXPANDED = 1 << 28


def find_state_dict(holder: Any) -> tuple[StateDict | nn.Module, list[str]]:
    """Search a loaded checkpoint for its weights.

    Looks in this order: `model_ema`, `state_dict_ema`, `ema_state_dict`, `ema`, `state_dict`,
    `model_state_dict`, `model`, `net`, `weights`, `module`, then the object itself. Entries of these names that
    lead to no tensor, such as options, do not count.

    Returns:
        The state dict (or the whole module, where one was unpickled on purpose) and what to tell the user.

    Raises:
        UnsupportedModelError: there are no weights in it.
    """
    notes: list[str] = []
    place = ""
    for _ in range(_MAX_DEPTH):
        if isinstance(holder, nn.Module):
            return holder, notes
        if not isinstance(holder, Mapping):
            break
        named = [k for k in _KEYS if isinstance(holder.get(k), (Mapping, nn.Module))]
        leading = [k for k in named if _has_weights(holder[k])]
        if not named or not (leading or not _has_tensors(holder)):
            break
        key, *others = leading or named
        place = f"{place}.{key}" if place else key
        if key in _EMA_KEYS and others:
            notes.append(f"Took the averaged weights '{place}' and left '{', '.join(others)}' aside.")
        holder = holder[key]
    if place and not notes:
        notes.append(f"Weights found under '{place}'.")
    if isinstance(holder, ModuleWeights) and holder:
        notes.append(f"Took the weights of the {holder!s}; its code was not run.")
        return holder, notes
    return _tensors_of(holder, place, notes), notes


def _has_weights(holder: Any, depth: int = _MAX_DEPTH) -> bool:
    """Whether the search would come from `holder` to a module or to tensors."""
    if isinstance(holder, nn.Module):
        return True
    if not isinstance(holder, Mapping) or depth == 0:
        return False
    return _has_tensors(holder) or any(_has_weights(holder.get(key), depth - 1) for key in _KEYS)


def _has_tensors(holder: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in holder.values())


def _tensors_of(holder: Any, place: str, notes: list[str]) -> StateDict:
    where = f" under '{place}'" if place else ""
    hint = "save the weights with torch.save(model.state_dict(), 'weights.pt')"
    if unopened := [value.name for value in (holder, *_values(holder)) if isinstance(value, Record)]:
        hint += f"; {unopened[0]} was not opened: if you trust the file's source, --trust-pickle runs its code"
    if not isinstance(holder, Mapping):
        raise UnsupportedModelError(f"The file holds no weights: {_what(holder)}{where}.", hint=hint)
    found: StateDict = {}
    dropped: list[str] = []
    for name, value in holder.items():
        if isinstance(name, str) and isinstance(value, Tensor) and name.rpartition(".")[2] not in _LITTER:
            found[name] = value.detach()
        else:
            dropped.append(str(name))
    if not found:
        content = f"a dictionary with {_some(dropped)}" if dropped else "an empty dictionary"
        raise UnsupportedModelError(f"The file holds no weights: {content}{where}, and no tensor.", hint=hint)
    if dropped:
        notes.append(f"Left out {len(dropped)} entries that are no weights: {_some(dropped)}.")
    return found


def _values(holder: Any) -> list[Any]:
    return list(holder.values()) if isinstance(holder, Mapping) else []


def _what(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a single tensor of shape {list(value.shape)}"
    if isinstance(value, Record):
        return f"a pickled {value.name}"
    return f"a {type(value).__name__}"


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def spellings(state: StateDict) -> Iterator[tuple[str, StateDict]]:
    """Yield the weights under every naming worth trying, the file's own first.

    A prefix may belong to the user's architecture, therefore the uncut names come before the cut ones.

    Yields:
        What was done, in words for the user ("" for the file's own names), and the renamed weights.
    """
    cut = ""
    yield cut, state
    while prefix := next((p for p in _PREFIXES if state and all(name.startswith(p) for name in state)), ""):
        state = {name[len(prefix) :]: value for name, value in state.items()}
        cut += prefix
        yield f"Cut the prefix '{cut}' off all names.", state
    modern = {_modern(name): value for name, value in state.items()}
    if modern.keys() != state.keys():
        yield "Renamed layers from torchvision's old names.", modern


def _modern(name: str) -> str:
    for pattern, replacement in _OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name


def check_layouts(state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are no plain dense weights, before anything computes with them.

    Raises:
        UnsupportedModelError: a tensor has no values, is quantized, sparse or the like, or claims far more than the
            file stores.
    """
    for name, tensor in state.items():
        if tensor.is_meta:
            raise UnsupportedModelError(
                f"The weight '{name}' has a shape but no values: the model was saved from the meta device.",
                hint="load the weights into the model first, then save its state_dict()",
            )
        if tensor.is_nested or tensor.is_quantized or tensor.layout is not torch.strided or tensor.is_complex():
            raise UnsupportedModelError(
                f"The weight '{name}' is quantized, sparse, nested or complex ({tensor.dtype}, {tensor.layout}).",
                hint="start from the float model: save its state_dict() in float32",
            )
        claimed = tensor.numel() * tensor.element_size()
        if tensor.numel() > _MAX_EXPANDED and claimed > tensor.untyped_storage().nbytes():
            raise UnsupportedModelError(
                f"The weight '{name}' claims {claimed} bytes but the file stores "
                f"{tensor.untyped_storage().nbytes()}: the file is damaged or hostile.",
                hint="get the file again from a source you trust",
            )


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        UnsupportedModelError: naming the first tensors and how many of their values are bad.
    """
    bad = []
    for name, tensor in state.items():
        if tensor.is_floating_point():
            values = tensor.float() if tensor.element_size() == 1 else tensor  # float8 knows no arithmetic
            if count := int((~torch.isfinite(values)).sum()):
                bad.append(f"{name} ({count} of {tensor.numel()} values)")
    if bad:
        raise UnsupportedModelError(
            f"The weights contain NaN or infinity in {_some(bad)}.",
            hint="the training diverged or the file is damaged: use an earlier checkpoint",
        )
