"""Lowered graph -> ONNX file with packed weights, and the proof that it computes what was trained."""

from binarize.exporting.emit import OPSET, emit, write_onnx
from binarize.exporting.verify import Verification, verify

__all__ = ["OPSET", "Verification", "emit", "verify", "write_onnx"]
