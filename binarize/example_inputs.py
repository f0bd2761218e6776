"""What a model takes: its form, and inputs guessed from its convolutions and settled by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_flatten, tree_unflatten

from binarize.errors import UnsupportedModelError, UsageError
from binarize.nn.modules import evaluating
from binarize.trees import read_structure, write_structure

BATCH = 2
"""A traced batch of one would stay one."""

_IMAGE_CHANNELS = (3, 1)
_USUAL_SIZE: dict[int, tuple[int, ...]] = {1: (1024,), 2: (224, 224), 3: (16, 112, 112)}
"""By dimensions: samples of a signal; an image's rows and columns; a clip's frames, rows and columns."""


@dataclass(frozen=True)
class Form:
    """A tree of values but for what the tensors in it hold.

    Attributes:
        structure: lists, dictionaries and so on, as torch's JSON.
        constants: the leaves that are no tensors, with their positions among all leaves.
        ranks: of the tensors, in order.
    """

    structure: str
    constants: tuple[tuple[int, Any], ...]
    ranks: tuple[int, ...]

    @classmethod
    def of(cls, value: Any) -> tuple[Form, tuple[Tensor, ...]]:
        """The form of `value` and its tensors.

        Raises:
            UnsupportedModelError: something in it is neither a tensor nor a plain number or text.
        """
        leaves, spec = tree_flatten(value)
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        constants = tuple((i, leaf) for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor))
        for _, leaf in constants:
            if leaf is not None and not isinstance(leaf, bool | int | float | str):
                raise UnsupportedModelError(f"a value of type {type(leaf).__name__} has no place in an ONNX file")
        return cls(write_structure(spec), constants, tuple(tensor.dim() for tensor in tensors)), tensors

    def fill(self, tensors: Iterable[Tensor]) -> Any:
        """The tree with `tensors` in it; the inverse of `of`."""
        spec, constants, values = _spec(self.structure), dict(self.constants), iter(tensors)
        leaves = [constants[i] if i in constants else next(values) for i in range(spec.num_leaves)]
        return tree_unflatten(leaves, spec)

    def to_dict(self) -> dict[str, Any]:
        return {"structure": self.structure, "constants": [list(c) for c in self.constants], "ranks": list(self.ranks)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Form:
        _spec(data["structure"])  # what is damaged says so now and not when it is called
        return cls(data["structure"], tuple((int(i), v) for i, v in data["constants"]), tuple(data["ranks"]))


_spec = cache(read_structure)


def default_example_inputs(model: nn.Module, input_size: tuple[int, ...] | None = None) -> tuple[Tensor, ...]:
    """Two random inputs, such as two images, on the model's device.

    Args:
        input_size: of one of them, channels first: (C, H, W), (C, L) for a signal, (C, T, H, W) for a clip. By default
            what the first conv suggests, an image of 3 x 224 x 224 for most; where that conv sees neither 3 channels
            nor 1, those are tried too, because layers that rearrange pixels may come before it.

    Raises:
        UsageError: `input_size` is no size, or of as many dimensions as none of the convs has.
    """
    if input_size is not None:
        input_size = as_size(input_size)
        _check_size(model, input_size)
        return (random_tensor(model, BATCH, *input_size),)
    size = _USUAL_SIZE[dimensions(model)]
    candidates = [(random_tensor(model, BATCH, channels, *size),) for channels in channel_guesses(model)]
    if len(candidates) == 1:
        return candidates[0]
    inputs, _ = first_that_runs(model, candidates)
    return candidates[0] if inputs is None else inputs


def channels_of(model: nn.Module) -> int:
    """Of the input that `default_example_inputs` finds."""
    return int(default_example_inputs(model)[0].shape[1])


def dimensions(model: nn.Module) -> int:
    """Of the maps that `model`'s first convolution sees, batch and channels not counted: 1, 2 or 3."""
    first = _first_conv(model)
    return 2 if first is None else len(first.kernel_size)


def channel_guesses(model: nn.Module) -> tuple[int, ...]:
    """How many channels the model's input may have: what its first convolution sees, then what images have."""
    first = _first_conv(model)
    own = 3 if first is None else first.in_channels
    return (own,) if own in _IMAGE_CHANNELS else (own, *_IMAGE_CHANNELS)


def evaluate(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Run `model` once in eval mode; the mode of each of its modules stays."""
    with torch.no_grad(), evaluating(model):
        model(*inputs)


def first_that_runs(
    model: nn.Module,
    candidates: Iterable[tuple[Any, ...]],
    attempt: Callable[[nn.Module, tuple[Any, ...]], None] = evaluate,
) -> tuple[tuple[Any, ...] | None, Exception | None]:
    """The first of some inputs with which `attempt` raises nothing, else None; and why the last failed, if one did."""
    failure: Exception | None = None
    for inputs in candidates:
        try:
            attempt(model, inputs)
        except Exception as error:
            failure = error
            continue
        return inputs, failure
    return None, failure


def random_tensor(model: nn.Module, *shape: int) -> Tensor:
    """Values of a normal distribution, the same ones for a shape, with the model's device and type."""
    like = next(_float_tensors(model), torch.zeros(1))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


def as_size(input_size: Iterable[int]) -> tuple[int, ...]:
    """`input_size`, such as (C, H, W), as a tuple.

    Raises:
        UsageError: it is none of several whole numbers.
    """
    size = tuple(input_size) if isinstance(input_size, Iterable) else ()
    if not size or not all(isinstance(extent, int) for extent in size):
        raise UsageError(f"the input size {input_size!r} is not such as (3, 224, 224)", hint="channels come first")
    return size


_FORMS = {1: "C,L", 2: "C,H,W", 3: "C,T,H,W"}
_EXAMPLES = {1: "1,16000", 2: "3,224,224", 3: "3,16,112,112"}


def _check_size(model: nn.Module, input_size: tuple[int, ...]) -> None:
    known = {len(module.kernel_size) for module in model.modules() if isinstance(module, _ConvNd)} or {2}
    if len(input_size) - 1 not in known or min(input_size) < 1:
        usual = dimensions(model)
        raise UsageError(
            f"input size {input_size} is not {_FORMS[usual]}", hint=f"for example --input-size {_EXAMPLES[usual]}"
        )


def _float_tensors(model: nn.Module) -> Iterator[Tensor]:
    return (parameter for parameter in model.parameters() if parameter.is_floating_point())


def _first_conv(model: nn.Module) -> _ConvNd | None:
    return next((module for module in model.modules() if isinstance(module, _ConvNd)), None)
