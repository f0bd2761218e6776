"""Versions and machine, for the record beside a result."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("binarize-nn", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy", "accelerate")


def versions() -> dict[str, str]:
    """Version of every package that shapes a result, of Python, and the platform."""
    found = {name: _version(name) for name in PACKAGES}
    return {**found, "python": platform.python_version(), "platform": platform.platform()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
