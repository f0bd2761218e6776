"""DenseNet-BC (Huang et al., "Densely Connected Convolutional Networks", 2016).

Style: numbered submodules set with `add_module` and found again with `getattr`, in-place functional ReLU.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["densenet_cifar"]


class Layer(nn.Module):
    def __init__(self, channels, growth, drop=0.0):
        super().__init__()
        self.norm_a, self.conv_a = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm_b, self.conv_b = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.drop = drop

    def forward(self, x):
        new = self.conv_a(F.relu_(self.norm_a(x)))
        new = self.conv_b(F.relu(self.norm_b(new), True))
        if self.drop > 0:
            new = F.dropout(new, self.drop, self.training)
        return torch.cat((new, x), 1)


class Transition(nn.Sequential):
    def __init__(self, channels, out):
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, out, 1, bias=False), nn.AvgPool2d(2))


class DenseNet(nn.Module):
    def __init__(self, layers=(6, 12, 24, 16), growth=12, reduction=0.5, num_classes=10, drop=0.0):
        super().__init__()
        channels = 2 * growth
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stages = len(layers)
        for stage, count in enumerate(layers):
            block = nn.Sequential()
            for index in range(count):
                block.add_module(f"layer{index}", Layer(channels, growth, drop))
                channels += growth
            self.add_module(f"dense{stage}", block)
            if stage < len(layers) - 1:
                out = math.floor(channels * reduction)
                self.add_module(f"trans{stage}", Transition(channels, out))
                channels = out
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.conv(x)
        for stage in range(self.stages):
            x = getattr(self, f"dense{stage}")(x)
            if stage < self.stages - 1:
                x = getattr(self, f"trans{stage}")(x)
        x = F.adaptive_avg_pool2d(F.relu(self.norm(x)), (1, 1))
        return self.linear(torch.flatten(x, 1))


def densenet_cifar(num_classes=10, layers=(6, 12, 24, 16), growth=12):
    return DenseNet(layers, growth, num_classes=num_classes)
