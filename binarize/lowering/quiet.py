"""PyTorch's exporters without what they say: progress, warnings about their own insides, graphs of what failed."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from unittest import mock

import torch.export._trace

_LOGGERS = ("torch.onnx", "torch.fx.experimental.symbolic_shapes")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed; what fails is raised all the same, and its error says why."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    # A failed export prints its half-made graph. Not by way of sys.stderr, where a progress bar may be at work.
    no_graphs = mock.patch.object(torch.export._trace, "print", lambda *_, **__: None, create=True)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), no_graphs:
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
