"""The float model as ordinary ONNX: what a binary file is compared with."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from binarize.exporting.emit import to_onnx, write_onnx


def float_onnx(model: nn.Module, path: str | Path, inputs: tuple[Tensor, ...]) -> int:
    """Write `model` as standard ONNX with a symbolic batch; returns the file's bytes.

    Args:
        model: the float CNN; in eval mode afterwards.
        path: replaced only when everything succeeded.
        inputs: what `model` takes, batch first, two or more examples.

    Raises:
        UnsupportedModelError: an operator has no ONNX form.
    """
    return write_onnx(to_onnx(model.eval(), inputs), path)
