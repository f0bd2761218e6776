"""Assemble: the float model in PyTorch, with its binary parts in ONNX Runtime."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from binarize.assembly.calls import Form
from binarize.assembly.folder import REST, PartFile, read_manifest
from binarize.assembly.write import rest_of
from binarize.errors import UnsupportedModelError, UsageError
from binarize.loading import resolve_recorded
from binarize.nn.modules import hooks_of
from binarize.runtime import InferenceSession


class SessionPart(nn.Module):
    """A module whose work ONNX Runtime does, on the CPU and without gradients.

    Plain attributes of the module that it replaces stay, since the code around it may read them.
    """

    sessions: dict[Form, tuple[InferenceSession, Form]]

    @staticmethod
    def adopt(module: nn.Module, sessions: dict[Form, tuple[InferenceSession, Form]]) -> None:
        """Turn the object `module` into a `SessionPart`.

        Args:
            sessions: by the form of arguments that each is for, with the form of its result.
        """
        in_the_file = hooks_of(module).values()
        for content in (module._modules, module._parameters, module._buffers, *in_the_file):
            content.clear()
        module.__class__ = SessionPart
        module.sessions = sessions  # type: ignore[assignment]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module of the trained model gives for these arguments."""
        form, tensors = Form.of((args, kwargs))
        if form not in self.sessions:
            raise UsageError(
                "a part is called with other arguments than when it was exported",
                hint="export again with example_inputs that lead to this call",
            )
        session, gives = self.sessions[form]
        names = [item.name for item in session.get_inputs()]
        arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
        results = session.run(None, dict(zip(names, arrays, strict=True)))
        device = tensors[0].device
        return gives.fill(torch.from_numpy(result).to(device) for result in results)


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
        sessions = {p.takes: (InferenceSession(folder / p.file, sess_options), p.gives) for p in parts}
        try:
            SessionPart.adopt(assembled.get_submodule(path), sessions)
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
