"""`InferenceSession`: ONNX Runtime's session with our operators registered and our errors raised."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from binarize.errors import EnvironmentProblem, UnsupportedModelError, UsageError
from binarize.runtime.library import own_words, register


class InferenceSession(onnxruntime.InferenceSession):
    """An `onnxruntime.InferenceSession` that can run the operators of `ai.binarize`.

    Args:
        path_or_bytes: a model file, or its bytes.
        sess_options: options to use; the operators are registered with them once, however many sessions
            share them. providers: execution providers, by default the CPU; our operators always run on the
            CPU. **kwargs: handed to `onnxruntime.InferenceSession`.

    Raises:
        UsageError: the file does not exist or cannot be read.
        UnsupportedModelError: ONNX Runtime or an operator refuses the model.
        EnvironmentProblem: onnxruntime is older than 1.18, or the op library is missing or does not run here.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        sess_options: onnxruntime.SessionOptions | None = None,
        providers: Sequence[str | tuple[str, dict[Any, Any]]] | None = None,
        **kwargs: Any,
    ) -> None:
        model, name = _model_source(path_or_bytes)
        options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        register(options)
        providers = ["CPUExecutionProvider"] if providers is None else providers
        try:
            super().__init__(model, options, providers=providers, **kwargs)
        except Exception as error:  # onnxruntime's classes share no base but RuntimeError and Exception
            raise _explain(error, name) from error


def _model_source(path_or_bytes: str | os.PathLike[str] | bytes) -> tuple[str | bytes, str]:
    """What to hand to ONNX Runtime, and a name for messages."""
    if isinstance(path_or_bytes, (bytes, bytearray, memoryview)):
        return bytes(path_or_bytes), "model bytes"
    if not isinstance(path_or_bytes, (str, os.PathLike)):
        raise UsageError(f"A model is a path or bytes, not {type(path_or_bytes).__name__}.")
    path = Path(path_or_bytes)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise UsageError(f"The model file {path} {what}.", hint="Give the path of an .onnx file.")
    return str(path), str(path)


def _explain(error: Exception, name: str) -> Exception:
    """One of our errors for whatever ONNX Runtime raised while it built a session."""
    text = own_words(error)
    if "BINARIZE_ISA" in text:
        return EnvironmentProblem(text, layer=name, hint="Unset BINARIZE_ISA to let the library choose.")
    if "Conflicting with a registered kernel" in text:
        hint = "Leave `register_custom_ops_library` to InferenceSession, or use binarize.runtime.register."
        return UsageError("The session options have the op library already.", layer=name, hint=hint)
    if "providers" in text.lower() and isinstance(error, ValueError):
        return UsageError(text, layer=name)
    hint = "Give a whole ONNX file (binarize convert or export writes one); if it is one, export it again."
    return UnsupportedModelError(f"ONNX Runtime refuses the model: {text}", layer=name, hint=hint)
