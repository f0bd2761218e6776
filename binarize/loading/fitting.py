"""Load weights into an architecture strictly, adapting the number of classes where only the head differs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import UnsupportedModelError, UsageError
from binarize.loading.architecture import Architecture
from binarize.loading.state_dict import StateDict, spellings

Shape = tuple[int, ...]

_SHOWN = 4
_MAX_HEADS = 4
_MAX_CLASSES = 1_000_000
# Class counts that libraries build by default: ImageNet, COCO detection, VOC, Kinetics, COCO persons.
_DEFAULT_CLASSES = (1000, 91, 21, 400, 2)

# Heads that exist only while training; checkpoints come with and without them.
_OPTIONAL_HEADS: dict[str, dict[str, Any]] = {
    "torchvision:googlenet": {"aux_logits": False},
    "torchvision:inception_v3": {"aux_logits": False},
    "torchvision:fcn_": {"aux_loss": True},
    "torchvision:deeplabv3_": {"aux_loss": True},
}


@dataclass(frozen=True)
class Fitted:
    """A module that took every weight of the file."""

    module: nn.Module
    notes: tuple[str, ...] = ()
    num_classes: int | None = None


@dataclass(frozen=True)
class Misfit:
    """How the names and shapes of a file differ from those of an architecture."""

    missing: dict[str, Shape] = field(default_factory=dict)
    unexpected: dict[str, Shape] = field(default_factory=dict)
    reshaped: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    integers: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of tensors that do not fit; 0 means that the weights fit."""
        return len(self.missing) + len(self.unexpected) + len(self.reshaped) + len(self.integers)

    def describe(self) -> str:
        """The first differences in words, with shapes and near names."""
        parts = []
        if self.reshaped:
            rows = [f"{k} {list(a)} against the model's {list(b)}" for k, (a, b) in self.reshaped.items()]
            parts.append(f"{len(rows)} of other shape ({_first(rows)})")
        if self.missing:
            rows = [f"{k} {list(shape)}{self._near(k)}" for k, shape in list(self.missing.items())[:_SHOWN]]
            parts.append(f"{len(self.missing)} missing in the file ({_first(rows, len(self.missing))})")
        if self.unexpected:
            rows = [f"{k} {list(shape)}" for k, shape in self.unexpected.items()]
            parts.append(f"{len(rows)} the model does not have ({_first(rows)})")
        if self.integers:
            parts.append(f"{len(self.integers)} stored as integers ({_first(list(self.integers))})")
        return "; ".join(parts)

    def _near(self, name: str) -> str:
        near = difflib.get_close_matches(name, list(self.unexpected)[:2000], 1, 0.75)
        return f", file has {near[0]}" if near else ""


def _first(rows: list[str], total: int | None = None) -> str:
    rest = (total or len(rows)) - _SHOWN
    return "; ".join(rows[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def load_strictly(architecture: Architecture, state: StateDict, num_classes: int | None = None) -> Fitted:
    """Build the architecture and load all weights of the file into it, none left over, none missing.

    Args:
        num_classes: passed to the factory; by default its own, or what the file's head says.

    Raises:
        UnsupportedModelError: the names or shapes differ; lists the first ones.
        UsageError: the factory fails or takes no `num_classes`.
    """
    outcome = fit(architecture, state, num_classes)
    if isinstance(outcome, Fitted):
        return outcome
    raise UnsupportedModelError(
        f"The weights do not fit the architecture {architecture.spec}: {outcome.describe()}.",
        hint="check --arch; leave it out to have torchvision architectures recognised",
    )


def fit(architecture: Architecture, state: StateDict, num_classes: int | None = None) -> Fitted | Misfit:
    """Try the weights under each spelling of their names; the best misfit if none fits."""
    if num_classes is not None and not architecture.accepts("num_classes"):
        raise UsageError("The architecture takes no argument num_classes.", layer=architecture.spec)
    best: Misfit | None = None
    for extra in _variants(architecture, num_classes):
        outline = architecture.outline(**extra)
        closest = None
        for note, spelling in spellings(state):
            misfit = compare(spelling, outline)
            if misfit.count == 0:
                return _loaded(architecture, outline, spelling, [note] if note else [], extra)
            closest = misfit if closest is None or misfit.count < closest.count else closest
        if num_classes is None and closest is not None:
            adapted = _adapt(architecture, state, closest, extra)
            if adapted is not None:
                return adapted
        best = closest if best is None or (closest is not None and closest.count < best.count) else best
    return best or Misfit()


def compare(state: StateDict, module: nn.Module) -> Misfit:
    """Compare names and shapes; BatchNorm's step counters may lack, as they do in old files."""
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    shared = [name for name in state if name in own]
    return Misfit(
        missing={k: tuple(v.shape) for k, v in own.items() if k not in state and not _is_counter(k)},
        unexpected={k: tuple(v.shape) for k, v in state.items() if k not in own and not _is_counter(k)},
        reshaped={k: (tuple(state[k].shape), tuple(own[k].shape)) for k in shared if state[k].shape != own[k].shape},
        # Copying int8 codes into float weights would succeed silently and mean nothing.
        integers=tuple(k for k in shared if own[k].is_floating_point() and not state[k].is_floating_point()),
    )


def _variants(architecture: Architecture, num_classes: int | None) -> Iterator[dict[str, Any]]:
    given: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    yield given
    for start, options in _OPTIONAL_HEADS.items():
        if architecture.spec.startswith(start):
            yield {**given, **options}


def _adapt(architecture: Architecture, state: StateDict, misfit: Misfit, extra: dict[str, Any]) -> Fitted | None:
    """Rebuild with the number of classes that the file's head has, if the head is all that differs."""
    if misfit.missing or misfit.unexpected or misfit.integers or not architecture.accepts("num_classes"):
        return None
    for classes in _head_sizes(architecture, misfit)[:_MAX_HEADS]:
        options = {**extra, "num_classes": classes}
        try:
            outline = architecture.outline(**options)
        except UsageError:  # `**kwargs` need not mean that num_classes is among them
            return None
        for note, spelling in spellings(state):
            if compare(spelling, outline).count == 0:
                notes = [*([note] if note else []), f"The head has {classes} classes."]
                return _loaded(architecture, outline, spelling, notes, options)
    return None


def _head_sizes(architecture: Architecture, misfit: Misfit) -> list[int]:
    """Numbers of classes that would explain the differing shapes, the most plausible first.

    A detector's head has several outputs per class, therefore sizes are taken relative to the default's.
    """
    own = architecture.default("num_classes")
    defaults = (own,) if isinstance(own, int) and own > 0 else _DEFAULT_CLASSES
    votes: dict[int, int] = {}
    for theirs, ours in misfit.reshaped.values():
        if len(theirs) != len(ours) or theirs[1:] != ours[1:] or not ours:
            continue
        for default in defaults:
            if ours[0] % default == 0 and theirs[0] % (ours[0] // default) == 0:
                classes = theirs[0] // (ours[0] // default)
                votes[classes] = votes.get(classes, 0) + 1
    return sorted((n for n in votes if 0 < n <= _MAX_CLASSES), key=lambda n: -votes[n])


def _loaded(
    architecture: Architecture, outline: nn.Module, state: StateDict, notes: list[str], extra: dict[str, Any]
) -> Fitted:
    hollow = any(parameter.is_meta for parameter in outline.parameters())
    module = architecture.build(**extra) if hollow else outline
    own = module.state_dict()
    counters = {k: torch.zeros_like(v) for k, v in own.items() if _is_counter(k) and k not in state}
    wanted = {k: v for k, v in state.items() if k in own}
    extras = {k: v for k, v in own.items() if not isinstance(v, Tensor)}
    kinds = {str(v.dtype) for v in state.values() if v.is_floating_point() and v.dtype != torch.float32}
    if kinds:
        notes.append(f"Weights stored as {', '.join(sorted(kinds))} were converted to the model's type.")
    # Without version metadata a layer believes the file to be old and converts it; its shapes are current.
    complete = type(own)({**extras, **counters, **wanted})
    complete._metadata = own._metadata  # type: ignore[attr-defined]
    module.load_state_dict(complete, strict=True)
    if "aux_logits" in extra or "aux_loss" in extra:
        notes.append(f"Built {'without' if extra.get('aux_logits') is False else 'with'} auxiliary heads.")
    return Fitted(module.eval(), tuple(notes), extra.get("num_classes"))


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"
