"""What a convolution's class does before it convolves: how it pads, and which weight it really uses.

A subclass may compute its weight (weight standardisation) or its padding (TensorFlow's "same") in `forward`. Both are
read off one call in which the convolution itself is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from binarize.errors import UnsupportedModelError
from binarize.nn.geometry import ConvGeometry

CONV_CLASSES: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_CONV_FUNCTIONS = {F.conv1d, F.conv2d, F.conv3d}


def computes_itself(kind: type[nn.Module]) -> bool:
    """Whether a conv class has a `forward` of its own."""
    plain = next((base for base in CONV_CLASSES if issubclass(kind, base)), None)
    if plain is None:
        return True
    return kind.forward is not plain.forward or kind._conv_forward is not plain._conv_forward  # type: ignore


class _LeaveOutConv(TorchFunctionMode):
    """Notes the arguments of convolutions, which give zeros, and how far `x` was zero-padded before."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.padded = {id(x): [0] * 2 * (x.dim() - 2)}
        self.kept = [x]
        self.calls: list[dict[str, Any]] = []
        self.output: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CONV_FUNCTIONS:
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            call = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
            self.calls.append(call | dict(zip(names, args, strict=False)) | kwargs)
            self.output = args[0].new_zeros(1)
            return self.output
        result = func(*args, **kwargs)
        if func is F.pad:
            self._note_padding(result, *args, **kwargs)
        return result

    def _note_padding(self, result: Tensor, input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> None:
        before = self.padded.get(id(input))
        if before is not None and mode == "constant" and not value and min(pad) >= 0:
            pairs = [*pad, *[0] * (len(before) - len(pad))]
            self.padded[id(result)] = [a + b for a, b in zip(before, pairs, strict=True)]
            self.kept.append(result)


def effective_weight(conv: _ConvNd, kind: type[nn.Module]) -> Tensor:
    """The weight that `kind.forward` convolves with, differentiable."""
    return _call(conv, kind, _smallest(conv))["weight"]  # type: ignore[no-any-return]


def dissect(conv: _ConvNd, kind: type[nn.Module]) -> ConvGeometry:
    """The geometry of a conv whose class has a `forward` of its own.

    Raises:
        UnsupportedModelError: it is no zero-padded convolution with a padding rule that we know.
    """
    n = len(conv.kernel_size)
    sizes = [[extent + more for extent in _smallest(conv)] for more in range(2 * max(conv.stride) + 1)]
    seen = [_pads(conv, kind, size) for size in sizes]
    fixed = ConvGeometry(
        conv.in_channels,
        conv.out_channels,
        tuple(conv.kernel_size),
        tuple(conv.stride),
        seen[0],
        tuple(conv.dilation),
        conv.groups,
    )
    if all(pads == seen[0] for pads in seen):
        return fixed
    same = replace(fixed, pads=(0,) * 2 * n, same=True)
    if all(same.at(*size).pads == pads for size, pads in zip(sizes, seen, strict=True)):
        return same
    raise UnsupportedModelError(f"{kind.__name__} pads by a rule of its own")


def _pads(conv: _ConvNd, kind: type[nn.Module], size: Sequence[int]) -> tuple[int, ...]:
    """All begins, then all ends."""
    call = _call(conv, kind, size)
    n = len(size)
    own = call["padding"]
    own = (own,) * n if isinstance(own, int) else tuple(own)
    pairs = call["pairs"]
    begins = [pairs[2 * (n - 1 - a)] + own[a] for a in range(n)]
    ends = [pairs[2 * (n - 1 - a) + 1] + own[a] for a in range(n)]
    return (*begins, *ends)


def _call(conv: _ConvNd, kind: type[nn.Module], size: Sequence[int]) -> dict[str, Any]:
    """The one convolution that `kind.forward` makes of an input of `size`, with its padding in `pairs`."""
    x = conv.bias.new_zeros(()) if conv.bias is not None else next(conv.parameters()).new_zeros(())
    x = x.detach().expand(1, conv.in_channels, *size)
    watch = _LeaveOutConv(x)
    try:
        with watch:
            output = kind.forward(conv, x)
    except Exception as error:
        raise UnsupportedModelError(f"{kind.__name__}.forward does not run by itself: {error}") from error
    if len(watch.calls) != 1 or output is not watch.output:
        raise UnsupportedModelError(f"{kind.__name__} computes more than one convolution")
    (call,) = watch.calls
    call["pairs"] = watch.padded.get(id(call["input"]))
    like = {"stride": conv.stride, "dilation": conv.dilation}
    changed = any(call[k] not in (v, v[0] if len(set(v)) == 1 else v, list(v)) for k, v in like.items())
    if call["pairs"] is None or changed or call["groups"] != conv.groups or isinstance(call["padding"], str):
        raise UnsupportedModelError(f"{kind.__name__} changes its input before the convolution, or its geometry")
    return call


def _smallest(conv: _ConvNd) -> list[int]:
    """A size that the kernel fits in without padding."""
    return [d * (k - 1) + 1 + s for k, d, s in zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)]
