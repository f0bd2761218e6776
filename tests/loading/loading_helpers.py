"""Small models, and objects that try to run code when they are unpickled."""

from __future__ import annotations

import os
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
