"""Lowered graph -> ONNX file with packed weights, and the proof that it computes what was trained."""

from binarize.exporting.emit import OPSET, emit, write_onnx
from binarize.exporting.verify import Verification, check_runtime, verify

__all__ = ["OPSET", "Verification", "check_runtime", "emit", "verify", "write_onnx"]
