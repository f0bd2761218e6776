"""Read the weights of a `torch.export` archive (.pt2): its JSON tables and raw tensors, never its program.

`torch.export.load` evaluates expressions out of the file, so it is not used; and the program it gives has its
BatchNorms frozen. The weights carry the original module's names and find their architecture like any state dict.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CONFIG = "data/weights/model_weights_config.json"
_OLD_STATE = "serialized_state_dict.pt"
# `torch._export.serde.schema.ScalarType`, which is a file format and does not change.
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip


def read_exported(path: Path) -> dict[str, Tensor]:
    """The state dict inside a .pt2 file of torch 2.1 or newer.

    Raises:
        ValueError, KeyError and what else parsers raise: it is damaged or of an unknown layout.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if config := next((name for name in names if name.endswith(_CONFIG)), None):
            folder = config.removesuffix("model_weights_config.json")
            table = json.loads(archive.read(config))["config"]
            return {str(name): _weight(archive, folder, entry) for name, entry in table.items()}
        saved = next(name for name in names if name.endswith(_OLD_STATE) or _is_saved_weights(name))
        state = torch.load(io.BytesIO(archive.read(saved)), map_location="cpu", weights_only=True)
    return {str(name): value for name, value in state.items()}


def _is_saved_weights(name: str) -> bool:
    """torch 2.7 and 2.8 keep the weights of each program as one torch.save file."""
    return "/data/weights/" in f"/{name}" and name.endswith(".pt")


def _weight(archive: zipfile.ZipFile, folder: str, entry: dict[str, Any]) -> Tensor:
    content = archive.read(folder + entry["path_name"])
    if entry["use_pickle"]:
        value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(value, Tensor):
            raise ValueError(f"a weight that is a {type(value).__name__}")
        return value
    meta = entry["tensor_meta"]
    size, stride = ([number["as_int"] for number in meta[key]] for key in ("sizes", "strides"))
    dtype = _DTYPES[meta["dtype"]]
    if not content:
        return torch.empty(size, dtype=dtype) if 0 in size else _cut_short(size)
    elements = torch.frombuffer(bytearray(content), dtype=dtype)
    return elements.as_strided(size, stride, meta["storage_offset"]["as_int"])


def _cut_short(size: list[int]) -> Tensor:
    raise ValueError(f"no bytes for a tensor of shape {size}")
