"""PyTorch's exporters without their warnings about their own insides and the graphs of what failed."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from unittest import mock

import torch.fx

_LOGGERS = ("torch.onnx", "torch.fx.experimental.symbolic_shapes")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What fails is raised all the same, and its error says why; `TORCH_LOGS`, which it may name, goes on to log."""
    import torch.export._trace as exporter  # seconds, and loading a file needs none of it

    loggers = [logging.getLogger(name) for name in _LOGGERS if "TORCH_LOGS" not in os.environ]
    # A failed export prints its half-made graph, and a failed graph its code. Not by way of sys.stderr, where a
    # progress bar may be at work.
    no_graphs = mock.patch.object(exporter, "print", lambda *_, **__: None, create=True)
    no_code = mock.patch.object(torch.fx.graph_module, "print", lambda *_, **__: None, create=True)
    with warnings.catch_warnings(), no_graphs, no_code, errors_alone(*loggers):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def errors_alone(*loggers: logging.Logger) -> Iterator[None]:
    """`loggers` log nothing below an error meanwhile."""
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
