"""Small networks that between them hold every kind of convolution and block the product meets."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_bn(c: int, o: int, k: int = 3, s: int = 1, g: int = 1, d: int = 1) -> nn.Sequential:
    """Conv without bias, batch norm, ReLU."""
    conv = nn.Conv2d(c, o, k, s, d * (k // 2), d, g, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class BasicBlock(nn.Module):
    """Two 3x3 convs and an identity, or a projection where the shape changes."""

    def __init__(self, c: int, o: int, s: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, o, 3, s, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        changes = s != 1 or c != o
        self.down = nn.Sequential(nn.Conv2d(c, o, 1, s, bias=False), nn.BatchNorm2d(o)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, identity."""

    def __init__(self, c: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_bn(c, width, 1),
            *conv_bn(width, width, 3),
            nn.Conv2d(width, c, 1, bias=False),
            nn.BatchNorm2d(c),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + x)


class SqueezeExcite(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(c, 8, 1), nn.Conv2d(8, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class InvertedResidual(nn.Module):
    """1x1 expand, depthwise, squeeze-excite, 1x1 project (linear), identity."""

    def __init__(self, c: int, ratio: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(c, c * ratio, 1),
            conv_bn(c * ratio, c * ratio, 3, g=c * ratio),
            SqueezeExcite(c * ratio),
            nn.Conv2d(c * ratio, c, 1, bias=False),
            nn.BatchNorm2d(c),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class EveryConv(nn.Module):
    """Stem, strided, grouped, dilated, odd-channel, bias-without-BN convs, all three blocks, a linear classifier."""

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.stem = conv_bn(channels, 16)
        self.pool = nn.MaxPool2d(2)
        self.basic = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 32, 2))
        self.bottleneck = Bottleneck(32, 8)
        self.inverted = InvertedResidual(32)
        self.grouped = conv_bn(32, 48, 3, g=4)
        self.dilated = conv_bn(48, 20, 3, d=2)
        self.odd = nn.Conv2d(20, 70, 3, 2, 0)
        self.even_kernel = nn.Conv2d(70, 33, 2, padding="same")
        self.head = nn.Linear(33, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inverted(self.bottleneck(self.basic(self.pool(self.stem(x)))))
        x = torch.relu(self.odd(self.dilated(self.grouped(x))))
        x = nn.functional.relu(self.even_kernel(x))
        return self.head(x.mean((2, 3)))


class PreActivation(nn.Module):
    """Norm and activation before each conv, channels concatenated: a DenseNet layer and a ResNet-v2 block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.bn1, self.conv1 = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, 1, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(24), nn.Conv2d(24, 24, 3, 1, 1, bias=False)
        self.last = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(torch.relu(self.bn1(x)))], 1)
        x = x + self.conv2(torch.relu(self.bn2(x)))
        return self.last(x).mean((2, 3))


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` with statistics and per-channel parameters away from their defaults, so that a dropped one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model
