"""A part on its way into files: one for maps of any size where it does the same at all of them, else one per size."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from binarize.assembly.calls import FlatPart
from binarize.config import Config
from binarize.errors import BinarizeError, UnsupportedModelError
from binarize.example_inputs import Form
from binarize.exporting import Verification, emit, verify
from binarize.lowering import Lowered, any_batches, any_sizes, lower
from binarize.lowering.quiet import quiet
from binarize.lowering.sizes import has_free_sizes, of_other_sizes, same_program, turned_decisions
from binarize.runtime import InferenceSession

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class BuiltPart:
    """The file of a part, called in one form.

    Attributes:
        path: of the part's module in the model.
        takes, gives: the forms of its arguments and of its result.
        model: the file's contents.
        why_fixed: why it takes maps of the example's size alone; empty where it need not.
        verification: its proof, at every example and, where sizes are free, at one more.
    """

    path: str
    takes: Form
    gives: Form
    model: onnx.ModelProto
    why_fixed: str
    verification: Verification | None

    @property
    def sizes(self) -> list[list[int | None]]:
        """Of each input, the extents behind batch and channels; None for any."""
        shapes = [item.type.tensor_type.shape.dim for item in self.model.graph.input]
        return [[dim.dim_value if dim.HasField("dim_value") else None for dim in shape[2:]] for shape in shapes]


def build_part(
    path: str, part: nn.Module, form: Form, examples: list[Tensors], config: Config, *, check: bool
) -> list[BuiltPart]:
    """The files that `part` needs for `examples`, what it gets in one form at distinct shapes.

    Args:
        check: whether to prove each file at the examples. That it holds for another size is looked at in any case,
            since that decides what the file says about sizes.

    Raises:
        VerificationError, UnsupportedModelError: even a file for the sizes of the examples is wrong or impossible.
    """
    full = [tensors for tensors in examples if all(tensor.numel() for tensor in tensors)]
    examples = [_at_least_two(tensors) for tensors in full or examples]
    builder = _Builder(path, FlatPart(path, part, form).eval(), form, config, check)
    try:
        return [builder.for_any_size(examples)]
    except Exception as error:  # of torch, its exporters, ONNX Runtime or ours: what is left is a file for each size
        reason = error.message if isinstance(error, BinarizeError) else f"{type(error).__name__}: {error}"
    return [builder.for_one_size(group, reason.splitlines()[0]) for group in _by_size(examples)]


@dataclass(frozen=True)
class _Builder:
    path: str
    flat: FlatPart
    form: Form
    config: Config
    check: bool

    def for_any_size(self, examples: list[Tensors]) -> BuiltPart:
        """A file without sizes, as far as the part's own code lets them differ."""
        lowered = self._traced(examples[0])
        other = self._other_size(lowered, examples)
        return self._built(lowered, examples, other, why_fixed="")

    def for_one_size(self, examples: list[Tensors], why_fixed: str) -> BuiltPart:
        """A file for maps of the size that all `examples` have."""
        lowered = lower(self.flat, examples[0], self.config, shapes=any_batches(examples[0]))
        return self._built(lowered, examples, [], why_fixed)

    def _built(self, lowered: Lowered, examples: list[Tensors], other: list[Tensors], why_fixed: str) -> BuiltPart:
        with torch.no_grad():
            gives = Form.of(self.flat.call(examples[0]))[0]
        model = emit(lowered, examples[0])
        proofs = [verify(lowered, model, inputs, session=_quiet_session) for inputs in other]
        if self.check:
            proofs += [verify(lowered, model, inputs) for inputs in examples]
        verification = Verification.joined(proofs) if self.check else None
        return BuiltPart(self.path, self.form, gives, model, why_fixed, verification)

    def _traced(self, example: Tensors) -> Lowered:
        return lower(self.flat, example, self.config, shapes=any_sizes(example))

    def _other_size(self, lowered: Lowered, examples: list[Tensors]) -> list[Tensors]:
        """Inputs of a size that no example has, to prove with; none where the trace leaves none.

        Raises:
            UnsupportedModelError: the part's code does something else at another size than at the example's.
        """
        settled = {frozenset[int]()}
        for inputs in examples[1:]:
            self._check_same_way(lowered, inputs, settled)
        if not has_free_sizes(lowered.original):
            return []
        found: list[Tensors] = []
        for inputs in of_other_sizes(lowered.original, examples[0]):
            if (found and turned_decisions(lowered.original, inputs) in settled) or not self._runs(inputs):
                continue
            self._check_same_way(lowered, inputs, settled)
            found = found or [inputs]
        if not found:
            raise UnsupportedModelError("its code runs at no other size that was tried")
        return found

    def _check_same_way(self, lowered: Lowered, inputs: Tensors, settled: set[frozenset[int]]) -> None:
        """Where `inputs` turn a decision that the trace took, a trace of them has to be the same all the same."""
        turned = turned_decisions(lowered.original, inputs)
        if turned in settled:
            return
        if turned is None or not same_program(lowered.original, self._traced(inputs).original):
            sizes = " and ".join("x".join(map(str, x.shape[2:])) for x in inputs)
            raise UnsupportedModelError(f"its code does something else for maps of {sizes}")
        settled.add(turned)

    def _runs(self, inputs: Tensors) -> bool:
        """Whether the part's own code takes maps of this size."""
        try:
            with quiet(), torch.no_grad():
                self.flat(*inputs)
        except Exception:  # whatever the model's code raises
            return False
        return True


def _quiet_session(model: bytes) -> InferenceSession:
    """A session that fails without printing: at another size it may."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return InferenceSession(model, options)


def _by_size(examples: list[Tensors]) -> list[list[Tensors]]:
    """`examples` that differ in their batches alone, together."""

    def size(tensors: Tensors) -> Any:
        return [tuple(tensor.shape[1:]) for tensor in tensors]

    return [list(group) for _, group in itertools.groupby(sorted(examples, key=size, reverse=True), size)]


def _at_least_two(tensors: Tensors) -> Tensors:
    """`tensors` with a batch of two or more: `torch.export` takes an extent of one or none for a constant.

    A detector that finds nothing gives its later heads no boxes; they get two of random features.
    """
    if all(tensor.dim() and tensor.shape[0] == 1 for tensor in tensors):
        return tuple(torch.cat([tensor, tensor]) for tensor in tensors)
    if all(tensor.dim() and tensor.shape[0] == 0 for tensor in tensors):
        generator = torch.Generator().manual_seed(0)
        return tuple(torch.randn(2, *tensor.shape[1:], generator=generator).to(tensor.dtype) for tensor in tensors)
    return tensors


def describe_sizes(sizes: Iterable[Iterable[int | None]]) -> str:
    """Such as "any", "16x20" or "16xany and 8xany", for maps of one input after the other."""
    texts = ["x".join("any" if extent is None else str(extent) for extent in size) for size in sizes if size]
    return " and ".join("any" if not text.strip("anyx") else text for text in texts) or "any"
