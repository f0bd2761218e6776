"""ShuffleNet (Zhang et al., "ShuffleNet: An Extremely Efficient CNN for Mobile Devices", 2017), 2 and 3 groups.

Style: the shuffle is a view and a permute with sizes read from the tensor; a pooled shortcut is concatenated.
"""

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["shufflenet_g2", "shufflenet_g3"]


def shuffle_channels(x, groups):
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = x.permute(0, 2, 1, 3, 4).contiguous()
    return x.view(batch, channels, height, width)


class Unit(nn.Module):
    def __init__(self, inp, out, stride, groups, first=False):
        super().__init__()
        self.stride, self.groups = stride, groups
        mid = out // 4 // groups * groups
        self.squeeze_groups = 1 if first else groups
        self.conv1 = nn.Conv2d(inp, mid, 1, groups=self.squeeze_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride=stride, padding=1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, out - inp if stride == 2 else out, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(out - inp if stride == 2 else out)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = shuffle_channels(out, self.squeeze_groups)
        out = self.bn2(self.conv2(out))
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return F.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))
        return F.relu(out + x)


class ShuffleNet(nn.Module):
    def __init__(self, widths, repeats, groups, num_classes=10, stem=24):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        inp, units = stem, []
        for stage, (out, repeat) in enumerate(zip(widths, repeats, strict=True)):
            for index in range(repeat):
                units.append(Unit(inp, out, 2 if index == 0 else 1, groups, first=stage == 0 and index == 0))
                inp = out
        self.units = nn.Sequential(*units)
        self.head = nn.Linear(inp, num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.units(x)
        x = F.avg_pool2d(x, 4)
        return self.head(x.view(x.size(0), -1))


def shufflenet_g2(num_classes=10, repeats=(4, 8, 4)):
    return ShuffleNet((200, 400, 800), repeats, 2, num_classes)


def shufflenet_g3(num_classes=10, repeats=(4, 8, 4)):
    return ShuffleNet((240, 480, 960), repeats, 3, num_classes)
