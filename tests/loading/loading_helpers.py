"""Small models, and objects that try to run code when they are unpickled."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

SHARED = Path(__file__).parents[3] / "shared"


class TinyNet(nn.Module):
    """Conv, BatchNorm, linear head: the smallest net with all kinds of state."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))


TINY_SOURCE = """
from torch import nn
import torch

class TinyNet(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))

def tiny(num_classes=4):
    return TinyNet(num_classes)

def broken():
    raise ValueError("no weights today")

def wrong_type():
    return 7

def fixed():
    return TinyNet()

number = 3
"""


class Payload:
    """Unpickling it runs a shell command that creates a marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


class EvalPayload(Payload):
    """The same through builtins.eval."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.marker)!r}, 'w').close()",)


class _TensorReferences(pickle.Pickler):
    """Pickles tensors as the numbers under which a tar checkpoint keeps them."""

    def persistent_id(self, value: object) -> str | None:
        return str(id(value)) if isinstance(value, torch.Tensor) else None


def write_tar_checkpoint(path: Path, state: dict[str, torch.Tensor]) -> None:
    """The format of torch before 0.1.10: a tar of raw storages, tensor geometry, and the pickle."""
    storages, tensors = io.BytesIO(), io.BytesIO()
    pickle.dump(len(state), storages, 2)
    pickle.dump(len(state), tensors, 2)
    for number, tensor in enumerate(state.values()):
        kind = torch.LongStorage if tensor.dtype == torch.int64 else torch.FloatStorage
        pickle.dump((number, "cpu", kind), storages, 2)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.contiguous().numpy().tobytes())
        pickle.dump((id(tensor), number, torch.FloatTensor), tensors, 2)
        numbers = [*tensor.shape, *tensor.contiguous().stride(), 0]
        tensors.write(struct.pack(f"<ii{len(numbers)}q", tensor.dim(), 0, *numbers))
    pickle.dump([], storages, 2)
    content = io.BytesIO()
    _TensorReferences(content, 2).dump(dict(state))
    with tarfile.open(path, "w") as archive:
        parts = {"storages": storages, "tensors": tensors, "pickle": content}
        for name, stream in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(stream.getvalue())
            archive.addfile(member, io.BytesIO(stream.getvalue()))
