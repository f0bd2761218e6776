"""Lowered graph -> ONNX file with packed weights, and the proof that it computes what was trained."""

from binarize.export.emit import OPSET, emit, write_onnx
from binarize.export.verify import Verification, verify

__all__ = ["OPSET", "Verification", "emit", "verify", "write_onnx"]
