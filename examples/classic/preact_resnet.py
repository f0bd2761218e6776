"""PreActResNet (He et al., "Identity Mappings in Deep Residual Networks", 2016).

Style: one in-place ReLU module shared by the whole network, a shortcut that exists only where it is needed.
"""

import torch
from torch import nn

__all__ = ["preact_resnet18"]

relu = nn.ReLU(inplace=True)


class PreActBlock(nn.Module):
    def __init__(self, inp, outp, stride, act):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inp)
        self.conv1 = nn.Conv2d(inp, outp, (3, 3), (stride, stride), (1, 1), bias=False)
        self.bn2 = nn.BatchNorm2d(outp)
        self.conv2 = nn.Conv2d(outp, outp, (3, 3), padding=(1, 1), bias=False)
        self.act = act
        if stride != 1 or inp != outp:
            self.project = nn.Conv2d(inp, outp, (1, 1), (stride, stride), bias=False)

    def forward(self, x):
        y = self.act(self.bn1(x))
        skip = self.project(y) if hasattr(self, "project") else x
        y = self.conv1(y)
        y = self.conv2(self.act(self.bn2(y)))
        return y + skip


class PreActResNet(nn.Module):
    def __init__(self, depths, num_classes=10, width=64):
        super().__init__()
        self.act = relu
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList()
        inp = width
        for stage, depth in enumerate(depths):
            outp = width * 2**stage
            for index in range(depth):
                self.blocks.append(PreActBlock(inp, outp, 2 if stage > 0 and index == 0 else 1, relu))
                inp = outp
        self.bn = nn.BatchNorm2d(inp)
        self.fc = nn.Linear(inp, num_classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.act(self.bn(x))
        x = torch.mean(x, dim=[2, 3])
        return self.fc(x)


def preact_resnet18(num_classes=10, width=64):
    return PreActResNet([2, 2, 2, 2], num_classes, width)
