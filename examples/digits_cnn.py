"""A small CNN with every kind of conv that the compiler must handle, for scikit-learn's 8x8 digits.

Plain 3x3 stem, residual block, 1x1, depthwise and strided convs, and a squeeze-excite gate: 0.1 M parameters.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from binarize.errors import EnvironmentProblem
from binarize.training.data import TensorImages

TEST_FRACTION = 0.2


class ConvUnit(nn.Sequential):
    """Conv without bias, BatchNorm, ReLU; padded to keep the size at stride 1."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )


class Residual(nn.Module):
    """Two 3x3 convs around an identity shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvUnit(channels, channels, 3)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.norm(self.second(self.first(x))))


class SqueezeExcite(nn.Module):
    """Scales each channel by a number 0..1 computed from all channel means."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(channels // reduction, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.relu(self.reduce(self.pool(x)))))


class DigitsCNN(nn.Module):
    """Images [N, 1, 8, 8] to logits [N, num_classes]."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = ConvUnit(1, 32, 3)
        self.residual = Residual(32)
        self.widen = ConvUnit(32, 64, 1)
        self.depthwise = ConvUnit(64, 64, 3, groups=64)
        self.gate = SqueezeExcite(64)
        self.strided = ConvUnit(64, 96, 3, stride=2)
        self.mix = ConvUnit(96, 128, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.residual(self.stem(x))
        x = self.gate(self.depthwise(self.widen(x)))
        x = self.mix(self.strided(x))
        return self.classifier(torch.flatten(self.pool(x), 1))


def digits_cnn(num_classes: int = 10) -> DigitsCNN:
    """The network with random weights."""
    return DigitsCNN(num_classes)


def load_digits_split(seed: int = 0) -> tuple[TensorImages, TensorImages]:
    """scikit-learn's 1797 digits as (1437 training, 360 test) images, uint8 [N, 1, 8, 8] on 0..255.

    Raises:
        EnvironmentProblem: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise EnvironmentProblem(
            "The digits come with scikit-learn, which is not installed.", hint="pip install scikit-learn"
        ) from error
    digits = load_digits()
    # The data set counts ink in 0..16.
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held = round(TEST_FRACTION * len(labels))
    classes = [str(name) for name in digits.target_names]
    train, test = order[held:], order[:held]
    return (
        TensorImages(images[train], labels[train], classes, "digits (train)"),
        TensorImages(images[test], labels[test], classes, "digits (test)"),
    )
