"""Recognise the torchvision or timm architecture of a bare state dict by the names and shapes of its tensors.

The shipped index holds a sketch of every architecture: how many tensors it has and the smallest hashes of their names
and shapes. It only proposes candidates; one counts as recognised when its module takes every tensor of the file.
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

from binarize.errors import EnvironmentProblem, UnsupportedModelError
from binarize.loading.architecture import resolve
from binarize.loading.fitting import Fitted, Misfit, fit
from binarize.loading.state_dict import StateDict, spellings

INDEX_PATH = Path(__file__).with_name("architecture_index.json")
HASH_BYTES = 4
SKETCH_SIZE = 48
# A head of another size changes some tensors of dozens (SSD: 24 of 71), so true matches stay above
# this, while an unrelated network scores near 0.
MIN_SCORE = 0.5
# A sketch estimates the similarity to about 0.07; the true architecture is within two of that from the best.
_SCORE_MARGIN = 0.15
_MAX_TRIALS = 8
_SHOWN = 3
_TWINS_SHOWN = 6
_LIBRARIES = ("torchvision", "timm")
# Weights say nothing of strides, dilation, activations or input scaling.
_CAVEAT = "Weights do not show strides, activations or input scaling: check the float accuracy on your data."


@dataclass(frozen=True)
class Sketch:
    """What the index keeps of an architecture: its number of tensors and the `SKETCH_SIZE` smallest of their hashes.

    The smallest hashes are a random sample of all, the same for every architecture that has these tensors.
    """

    count: int
    hashes: frozenset[int]

    @classmethod
    def of(cls, hashes: frozenset[int]) -> Sketch:
        return cls(len(hashes), frozenset(sorted(hashes)[:SKETCH_SIZE]))

    @classmethod
    def unpacked(cls, text: str) -> Sketch:
        count, _, packed = text.partition(":")
        return cls(int(count), frozenset(memoryview(base64.b64decode(packed)).cast("I")))

    def packed(self) -> str:
        content = b"".join(number.to_bytes(HASH_BYTES, "little") for number in sorted(self.hashes))
        return f"{self.count}:{base64.b64encode(content).decode()}"

    def similarity(self, file: frozenset[int]) -> float:
        """Estimate of the Jaccard similarity, 0 to 1, to a file with these hashes; exact for equal ones."""
        shared = min(self.count * len(self.hashes & file) / max(1, len(self.hashes)), len(file))
        return shared / max(1.0, self.count + len(file) - shared)


@dataclass(frozen=True)
class Candidate:
    """Architectures with the very same tensors, torchvision's first, and their similarity to the file."""

    names: tuple[str, ...]
    score: float

    def __str__(self) -> str:
        return f"{self.names[0]} ({self.score:.2f})"


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
    """Find the one architecture that takes exactly these weights; of equal ones, torchvision's counts.

    Returns:
        Its `--arch` spelling, the loaded module, and notes that say how sure this is.

    Raises:
        UnsupportedModelError: none fits, or several do; names the best candidates with their scores.
        EnvironmentProblem: the architecture is timm's, and timm is not installed.
    """
    ranked = rank(state)
    fits, misfits = _trials(state, ranked)
    # A head of the usual size speaks for its architecture against one whose head had to be changed.
    exact = [(candidate, fitted) for candidate, fitted in fits if fitted.num_classes is None] or fits
    if not exact:
        raise _unknown(ranked, misfits)
    names = [name for candidate, _ in exact for name in candidate.names]
    known = [name for name in names if name.startswith("torchvision:")]
    if len(known or names) > 1:
        raise _ambiguous(known or names)
    name = (known or names)[0]
    best, fitted = next((candidate, fitted) for candidate, fitted in exact if name in candidate.names)
    return name, fitted, [_confidence(name, best, fitted, ranked), *_twins(name, names), _CAVEAT]


def rank(state: StateDict) -> list[Candidate]:
    """All indexed architectures, the most similar first, by the best spelling of the file's names."""
    prints = [fingerprint(spelling) for _, spelling in spellings(state)]
    scored = [
        Candidate(names, max(sketch.similarity(print_) for print_ in prints)) for sketch, names in load_index().items()
    ]
    return sorted(scored, key=lambda candidate: (-candidate.score, candidate.names))


@cache
def load_index() -> dict[Sketch, tuple[str, ...]]:
    """The shipped index: the sketches, and the architectures that each of them is."""
    found: dict[Sketch, tuple[str, ...]] = {}
    packed = json.loads(INDEX_PATH.read_text(encoding="utf-8"))
    for library in _LIBRARIES:
        for name, text in packed[library].items():
            sketch = Sketch.unpacked(text)
            found[sketch] = (*found.get(sketch, ()), f"{library}:{name}")
    return found


Fits = list[tuple[Candidate, Fitted]]
Misfits = list[tuple[Candidate, Misfit]]


def _trials(state: StateDict, ranked: list[Candidate]) -> tuple[Fits, Misfits]:
    """Build the best candidates and try whether they take the weights; equal candidates need one trial."""
    fits: Fits = []
    misfits: Misfits = []
    least = max(MIN_SCORE, ranked[0].score - _SCORE_MARGIN)
    for candidate in [candidate for candidate in ranked if candidate.score >= least][:_MAX_TRIALS]:
        try:
            outcome = fit(resolve(candidate.names[0]), state)
        except EnvironmentProblem as error:
            if candidate is ranked[0]:
                raise EnvironmentProblem(
                    f"The weights look like {candidate}, and timm is not installed.", hint=error.hint
                ) from error
            continue
        if isinstance(outcome, Fitted):
            fits.append((candidate, outcome))
        else:
            misfits.append((candidate, outcome))
    return fits, misfits


def _confidence(name: str, best: Candidate, fitted: Fitted, ranked: list[Candidate]) -> str:
    rival = next(candidate for candidate in ranked if candidate != best)
    sure = "certain" if fitted.num_classes is None else "the head is of another size"
    return f"Recognised {name}: every tensor fits ({sure}); next best {rival}."


def _twins(name: str, names: list[str]) -> list[str]:
    others = [other for other in names if other != name]
    return [f"The same weights also fit {_some(others)}: say --arch if it is that one."] if others else []


def _some(names: list[str]) -> str:
    rest = len(names) - _TWINS_SHOWN
    return ", ".join(names[:_TWINS_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _ambiguous(names: list[str]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The weights fit {len(names)} architectures equally: {_some(names)}. They compute different things.",
        hint=f"say which one it is: --arch {names[0]}",
    )


def _unknown(ranked: list[Candidate], misfits: Misfits) -> UnsupportedModelError:
    best = [candidate for candidate in ranked[:_SHOWN] if candidate.score > 0]
    if not best:
        closest = "nothing in torchvision or timm resembles them"
    elif misfits:
        candidate, misfit = misfits[0]
        closest = f"closest are {', '.join(map(str, best))}; against {candidate.names[0]}: {misfit.describe()}"
    else:
        closest = f"closest are {', '.join(map(str, best))}, too far to be one of them"
    return UnsupportedModelError(
        f"No known architecture fits these weights: {closest}.",
        hint="name the code that builds the model: --arch package.module:factory or --arch file.py:factory",
    )
