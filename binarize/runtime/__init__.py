"""Running binary models: ONNX Runtime with the op library of `ai.binarize`. Needs neither torch nor onnx."""

from binarize.runtime.library import active_isa, library_path, register
from binarize.runtime.session import InferenceSession

__all__ = ["InferenceSession", "active_isa", "library_path", "register"]
