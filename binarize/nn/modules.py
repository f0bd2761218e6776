"""What every pass does with modules: run them in eval mode, keep their hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode inside; afterwards each of its modules in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def hooks_of(module: nn.Module) -> dict[str, Any]:
    """The tables of hooks of `module`, by attribute, for a module that takes its place."""
    return {name: value for name, value in vars(module).items() if name.endswith("_hooks") or "_hooks_" in name}
