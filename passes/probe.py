"""A second look at a model with a larger input, to tell what belongs to the net from what belongs to the input."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map_only

from binarize.nn.modules import evaluating


class Probe:
    """Where a model's maps end up when its inputs are more than twice as large."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._model = model
        self._inputs = inputs

    @cached_property
    def larger_maps(self) -> dict[str, list[tuple[int, ...]]]:
        """Every convolution's input sizes by path; nothing if the model takes inputs of one size only.

        The run is on fake tensors, which have shapes alone; a model that looks at values runs on zeros.
        """
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            fakes = tree_map_only(Tensor, lambda x: fake.from_tensor(_enlarged(x)), self._inputs)
            sizes = _map_sizes(self._model, fakes)
        return sizes or _map_sizes(self._model, tree_map_only(Tensor, _enlarged, self._inputs)) or {}


def _enlarged(x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:2], *(2 * size + 64 for size in x.shape[2:]))


def _map_sizes(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, list[tuple[int, ...]]] | None:
    """The sizes seen in one run, None if it fails."""
    sizes: dict[str, list[tuple[int, ...]]] = {}

    def watch(path: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> None:
            sizes.setdefault(path, []).append(tuple(arguments[0].shape[2:]) if arguments else ())

        return module.register_forward_hook(note)

    handles = [watch(path, module) for path, module in model.named_modules() if isinstance(module, _ConvNd)]
    try:
        with torch.no_grad(), evaluating(model):
            model(*inputs)
        return sizes
    except Exception:
        return None
    finally:
        for handle in handles:
            handle.remove()
