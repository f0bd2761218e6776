"""The float model as ordinary ONNX: what a binary file is compared with."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from binarize.errors import UnsupportedModelError
from binarize.exporting.emit import OPSET, write_onnx
from binarize.lowering import dynamic_batch


def float_onnx(model: nn.Module, path: str | Path, inputs: tuple[Tensor, ...]) -> int:
    """Write `model` as standard ONNX with a symbolic batch; returns the file's bytes.

    Args:
        model: the float CNN; in eval mode afterwards.
        path: replaced only when everything succeeded.
        inputs: what `model` takes, batch first, two or more examples.

    Raises:
        UnsupportedModelError: an operator has no ONNX form.
    """
    names = ["input"] if len(inputs) == 1 else [f"input_{i}" for i in range(len(inputs))]
    try:
        with _quiet():
            program = torch.onnx.export(
                model.eval(),
                inputs,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic_batch(inputs),
                input_names=names,
                verbose=False,
            )
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModelError(f"the float model has no ONNX form: {first[:300]}") from error
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    return write_onnx(proto, path)


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes (source lines, stack traces), which a fair size must not count."""
    graph = model.graph
    for holder in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on stdout and warns about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
