"""Recognise the torchvision architecture of a bare state dict by the names and shapes of its tensors.

The shipped index holds, for each architecture, a 4-byte hash of every (name, shape). It only proposes
candidates; the architecture counts as recognised when its module takes every tensor of the file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from binarize.errors import UnsupportedModelError
from binarize.loading.architecture import resolve
from binarize.loading.fitting import Fitted, Misfit, fit
from binarize.loading.state_dict import StateDict, spellings

INDEX_PATH = Path(__file__).with_name("torchvision_index.json")
HASH_BYTES = 4
# A head of another size changes some tensors of dozens (SSD: 24 of 71), so true matches stay above
# this, while an unrelated network scores near 0.
MIN_SCORE = 0.5
_MAX_TRIALS = 4
# Architectures that fit the same weights have the same tensors, but for the size of their heads.
_TWIN_GAP = 0.02
_SHOWN = 3
# Weights say nothing of strides, dilation, activations or input scaling.
_CAVEAT = "Weights do not show strides, activations or input scaling: check the float accuracy on your data."


@dataclass(frozen=True)
class Candidate:
    """An architecture and its Jaccard similarity to the file, 0..1, over (name, shape) pairs."""

    name: str
    score: float

    def __str__(self) -> str:
        return f"{self.name} ({self.score:.2f})"


def tensor_hash(name: str, shape: Iterable[int]) -> int:
    """Hash of one tensor's name and shape, 0 <= hash < 2**32."""
    text = f"{name}:{','.join(str(size) for size in shape)}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=HASH_BYTES).digest(), "little")


def fingerprint(state: Mapping[str, Tensor]) -> frozenset[int]:
    """Hashes of all tensors but BatchNorm's step counters, which old files lack."""
    return frozenset(
        tensor_hash(name, value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")
    )


def recognise_architecture(state: StateDict) -> tuple[str, Fitted, list[str]]:
    """Find the one torchvision architecture that takes exactly these weights.

    Returns:
        Its `--arch` spelling, the loaded module, and notes that say how sure this is.

    Raises:
        UnsupportedModelError: none fits, or several do; names the best candidates with their scores.
    """
    ranked = rank(state)
    near = [candidate for candidate in ranked if candidate.score >= MIN_SCORE][:_MAX_TRIALS]
    fits: list[tuple[Candidate, Fitted]] = []
    misfits: list[tuple[Candidate, Misfit]] = []
    for candidate in near:
        if fits and fits[0][0].score - candidate.score > _TWIN_GAP:
            break
        outcome = fit(resolve(candidate.name), state)
        if isinstance(outcome, Fitted):
            fits.append((candidate, outcome))
        else:
            misfits.append((candidate, outcome))
    if len(fits) == 1:
        best, fitted = fits[0]
        return best.name, fitted, [_confidence(best, ranked), _CAVEAT]
    if fits:
        raise _ambiguous([candidate for candidate, _ in fits])
    raise _unknown(ranked, misfits)


def rank(state: StateDict) -> list[Candidate]:
    """All indexed architectures, the most similar first, by the best spelling of the file's names."""
    prints = [fingerprint(spelling) for _, spelling in spellings(state)]
    scored = [
        Candidate(f"torchvision:{name}", max(_jaccard(print_, known) for print_ in prints))
        for name, known in load_index().items()
    ]
    return sorted(scored, key=lambda candidate: (-candidate.score, candidate.name))


@cache
def load_index() -> dict[str, frozenset[int]]:
    """The shipped index: torchvision model name to the hashes of its tensors."""
    packed = json.loads(INDEX_PATH.read_text(encoding="utf-8"))["models"]
    return {name: frozenset(memoryview(base64.b64decode(text)).cast("I")) for name, text in packed.items()}


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    shared = len(one & other)
    return shared / max(1, len(one) + len(other) - shared)


def _confidence(best: Candidate, ranked: list[Candidate]) -> str:
    rival = next(candidate for candidate in ranked if candidate.name != best.name)
    sure = "certain" if best.score == 1.0 else "the head is of another size"
    return (
        f"Recognised {best.name}: every tensor fits; {best.score:.0%} equal the original's names and shapes "
        f"({sure}); next best {rival}."
    )


def _ambiguous(candidates: list[Candidate]) -> UnsupportedModelError:
    names = ", ".join(str(candidate) for candidate in candidates)
    return UnsupportedModelError(
        f"The weights fit {len(candidates)} architectures equally: {names}. They compute different things.",
        hint=f"say which one it is: --arch {candidates[0].name}",
    )


def _unknown(ranked: list[Candidate], misfits: list[tuple[Candidate, Misfit]]) -> UnsupportedModelError:
    best = [candidate for candidate in ranked[:_SHOWN] if candidate.score > 0]
    if not best:
        closest = "nothing in torchvision resembles them"
    elif misfits:
        candidate, misfit = misfits[0]
        closest = f"closest are {', '.join(map(str, best))}; against {candidate.name}: {misfit.describe()}"
    else:
        closest = f"closest are {', '.join(map(str, best))}, too far to be one of them"
    return UnsupportedModelError(
        f"No known architecture fits these weights: {closest}.",
        hint="name the code that builds the model: --arch package.module:factory or --arch file.py:factory",
    )
