"""Assemble: the float model in PyTorch, with its binary parts in ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from binarize.assembly.folder import REST, PartFile, read_manifest
from binarize.assembly.write import rest_of
from binarize.errors import UnsupportedModelError, UsageError
from binarize.example_inputs import Form
from binarize.loading import resolve_recorded
from binarize.nn.modules import hooks_of
from binarize.runtime import InferenceSession


class Session:
    """ONNX Runtime on the file of a part."""

    def __init__(self, path: Path, gives: Form, options: onnxruntime.SessionOptions | None) -> None:
        self._session = InferenceSession(path, options)
        self._gives = gives
        self._inputs = self._session.get_inputs()

    def takes(self, tensors: tuple[Tensor, ...]) -> bool:
        """Whether `tensors` have the extents that the file has in numbers, and equal ones where it has one name."""
        shapes = zip((item.shape for item in self._inputs), (x.shape for x in tensors), strict=True)
        extents = [pair for wanted, given in shapes for pair in zip(wanted, given, strict=True)]
        named = dict(extents)
        return all(extent == (wanted if isinstance(wanted, int) else named[wanted]) for wanted, extent in extents)

    def run(self, tensors: tuple[Tensor, ...]) -> Any:
        arrays = {item.name: x.detach().cpu().numpy() for item, x in zip(self._inputs, tensors, strict=True)}
        results = self._session.run(None, arrays)
        device = tensors[0].device
        return self._gives.fill(torch.from_numpy(result).to(device) for result in results)

    def __str__(self) -> str:
        return _shapes(item.shape for item in self._inputs)


def _shapes(shapes: Iterable[Sequence[int | str]]) -> str:
    """Such as "any x 8 x 16 x 20"."""
    return " and ".join(" x ".join(str(e) if isinstance(e, int) else "any" for e in shape) for shape in shapes)


class SessionPart(nn.Module):
    """A module whose work ONNX Runtime does, on the CPU and without gradients.

    Plain attributes of the module that it replaces stay, since the code around it may read them.
    """

    path: str
    sessions: dict[Form, list[Session]]

    @staticmethod
    def adopt(module: nn.Module, path: str, sessions: dict[Form, list[Session]]) -> None:
        """Turn the object `module` into a `SessionPart`.

        Args:
            path: of the part in the model.
            sessions: by the form of arguments that they are for, one for each size of maps that is not free.
        """
        in_the_file = hooks_of(module).values()
        for content in (module._modules, module._parameters, module._buffers, *in_the_file):
            content.clear()
        module.__class__ = SessionPart
        vars(module).update(path=path, sessions=sessions)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module of the trained model gives for these arguments."""
        form, tensors = Form.of((args, kwargs))
        if form not in self.sessions:
            raise UsageError(
                "a part is called with other arguments than when it was exported",
                layer=self.path,
                hint="export again with example_inputs that lead to this call",
            )
        chosen = next((one for one in self.sessions[form] if one.takes(tensors)), None)
        if chosen is None:
            raise UsageError(
                f"it was exported for {' or '.join(map(str, self.sessions[form]))}, and gets "
                f"{_shapes(tensor.shape for tensor in tensors)}",
                layer=self.path,
                hint="its code depends on the size: export again with example_inputs of that size",
            )
        return chosen.run(tensors)


def assemble(
    folder: str | Path, model: nn.Module | None = None, *, sess_options: onnxruntime.SessionOptions | None = None
) -> nn.Module:
    """See `binarize.assemble`."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    if model is None:
        architecture = resolve_recorded(manifest.arch, folder, "pass the float model: assemble(folder, model)")
        assembled = architecture.build_for(manifest.num_classes)
    else:
        assembled = copy.deepcopy(model)
    by_path: dict[str, list[PartFile]] = {}
    for part in manifest.parts:
        by_path.setdefault(part.path, []).append(part)
    for path, parts in by_path.items():
        sessions: dict[Form, list[Session]] = {}
        for part in parts:
            sessions.setdefault(part.takes, []).append(Session(folder / part.file, part.gives, sess_options))
        try:
            SessionPart.adopt(assembled.get_submodule(path), path, sessions)
        except AttributeError as error:
            raise UnsupportedModelError("the model has no such part", layer=path, hint=_SAME) from error
    _load_rest(assembled, folder / REST)
    return assembled.eval()


_SAME = "pass the float model that was converted"


def _load_rest(model: nn.Module, path: Path) -> None:
    try:
        rest: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UnsupportedModelError(
            "the float rest's weights cannot be read", layer=str(path), hint="export again"
        ) from error
    wanted = rest_of(model, {})
    different = [n for n in sorted({*rest, *wanted}) if n not in rest or n not in wanted]
    different += [n for n in rest if n in wanted and rest[n].shape != wanted[n].shape]
    if different:
        raise UnsupportedModelError(
            f"the model is not the one that was exported: {different[0]} differs", layer=different[0], hint=_SAME
        )
    model.load_state_dict(rest)
