"""binarize: any pretrained PyTorch CNN as a binary network that runs bit-packed in ONNX Runtime.

    module = binarize.apply(model)                        # trainable, to fine-tune with any loop
    binarize.convert("resnet50.pt", "rn50_el.onnx")       # the whole way
    session = binarize.InferenceSession("rn50_el.onnx")   # needs neither torch nor onnx

Names are resolved on first use: importing the package for inference imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from binarize.api import (
        Conversion,
        apply,
        assemble,
        calibrate,
        convert,
        export,
        finetune,
        inspect,
        load,
        parameter_groups,
    )
    from binarize.config import Config
    from binarize.report import Report
    from binarize.runtime import InferenceSession

__version__ = "0.1.0"

_HOMES = {
    "Config": "binarize.config",
    "Conversion": "binarize.api",
    "InferenceSession": "binarize.runtime",
    "Report": "binarize.report",
    "apply": "binarize.api",
    "assemble": "binarize.api",
    "calibrate": "binarize.api",
    "convert": "binarize.api",
    "export": "binarize.api",
    "finetune": "binarize.api",
    "inspect": "binarize.api",
    "load": "binarize.api",
    "parameter_groups": "binarize.api",
}

__all__ = [
    "Config",
    "Conversion",
    "InferenceSession",
    "Report",
    "apply",
    "assemble",
    "calibrate",
    "convert",
    "export",
    "finetune",
    "inspect",
    "load",
    "parameter_groups",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'binarize' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
