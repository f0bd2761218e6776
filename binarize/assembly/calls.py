"""The binary parts of a model, and how its own code calls them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from binarize.example_inputs import Form
from binarize.nn import BinaryConv, Region


class FlatPart(nn.Module):
    """A part under its own path, called in one form from its tensors alone: `forward(*tensors) -> tensors`."""

    def __init__(self, path: str, part: nn.Module, form: Form) -> None:
        super().__init__()
        self._path, self._form = path, form
        home: nn.Module = self
        *parents, name = path.split(".")
        for parent in parents:
            home.add_module(parent, nn.Module())
            home = home.get_submodule(parent)
        home.add_module(name, part)

    def call(self, tensors: Iterable[Tensor]) -> Any:
        """The part's own result."""
        args, kwargs = self._form.fill(tensors)
        return self.get_submodule(self._path)(*args, **kwargs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return Form.of(self.call(tensors))[1]


def find_parts(module: nn.Module, path: str = "") -> dict[str, nn.Module]:
    """The largest graphs that surgery changed, and the binary convs that code in no graph calls, by path.

    Most have binary convs; in others an activation was replaced, and the float model knows nothing of that.
    """
    if isinstance(module, BinaryConv):
        return {path: module}
    if isinstance(module, Region):
        binary = any(isinstance(m, BinaryConv) for m in module.modules())
        return {path: module} if binary or module.altered else {}
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        found |= find_parts(child, f"{path}.{name}" if path else name)
    return found


@torch.no_grad()
def record_calls(
    module: nn.Module, inputs: tuple[Any, ...], parts: dict[str, nn.Module]
) -> dict[str, dict[Form, list[tuple[Tensor, ...]]]]:
    """What every part gets when `module` runs on `inputs`: tensors of distinct shapes, the largest first, by form."""
    seen: dict[str, dict[Form, list[tuple[Tensor, ...]]]] = {path: {} for path in parts}

    def watch(path: str, part: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, args: Any, kwargs: Any) -> None:
            form, tensors = Form.of((args, kwargs))
            known = seen[path].setdefault(form, [])
            if all(_shapes(tensors) != _shapes(other) for other in known):
                known.append(tuple(tensor.detach().clone() for tensor in tensors))

        return part.register_forward_pre_hook(note, with_kwargs=True)

    handles = [watch(path, part) for path, part in parts.items()]
    try:
        module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    for forms in seen.values():
        for known in forms.values():
            known.sort(key=lambda tensors: -sum(tensor.numel() for tensor in tensors))
    return seen


def _shapes(tensors: tuple[Tensor, ...]) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors]
