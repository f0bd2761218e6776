"""SENet-18 (Hu et al., "Squeeze-and-Excitation Networks", 2017) on pre-activation blocks.

Style: the gate is two linear layers and a broadcast product written out by hand; tensor methods throughout.
"""

import torch.nn.functional as F
from torch import nn

__all__ = ["senet18"]


class SEBlock(nn.Module):
    def __init__(self, in_planes, planes, stride=1, squeeze=16):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Conv2d(in_planes, planes, 1, stride, bias=False)
        self.fc1 = nn.Linear(planes, planes // squeeze)
        self.fc2 = nn.Linear(planes // squeeze, planes)

    def forward(self, x):
        out = self.bn1(x).relu()
        shortcut = self.shortcut(out) if self.shortcut is not None else x
        out = self.conv1(out)
        out = self.conv2(self.bn2(out).relu())
        gate = out.mean(-1).mean(-1)
        gate = self.fc2(self.fc1(gate).relu()).sigmoid()
        out = out * gate[:, :, None, None].expand_as(out)
        out += shortcut
        return out


class SENet(nn.Module):
    def __init__(self, counts, num_classes=10, width=64):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        planes, blocks = width, []
        for stage, count in enumerate(counts):
            for index in range(count):
                out = width << stage
                blocks += [SEBlock(planes, out, 2 if stage and not index else 1)]
                planes = out
        self.layers = nn.Sequential(*blocks)
        self.linear = nn.Linear(planes, num_classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu_()
        x = self.layers(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def senet18(num_classes=10, width=64):
    return SENet((2, 2, 2, 2), num_classes, width)
