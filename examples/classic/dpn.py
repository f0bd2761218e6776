"""Dual path network (Chen et al., "Dual Path Networks", 2017): a residual and a densely connected path in one.

Style: channels of the two paths are sliced apart and concatenated again in every block.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ["dpn26"]


class DualPathBlock(nn.Module):
    def __init__(self, last, mid, out, dense, stride, first, groups=32):
        super().__init__()
        self.out, self.dense = out, dense
        self.conv1 = nn.Conv2d(last, mid, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, kernel_size=3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, out + dense, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out + dense)
        self.shortcut = nn.Sequential()
        if first:
            self.shortcut = nn.Sequential(
                nn.Conv2d(last, out + dense, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out + dense)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        x = self.shortcut(x)
        d = self.out
        y = torch.cat([x[:, :d, :, :] + y[:, :d, :, :], x[:, d:, :, :], y[:, d:, :, :]], 1)
        return F.relu(y)


class DPN(nn.Module):
    def __init__(self, cfg, num_classes=10):
        super().__init__()
        mids, outs = cfg["mid"], cfg["out"]
        self.conv1 = nn.Conv2d(3, cfg["stem"], kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(cfg["stem"])
        self.last = cfg["stem"]
        groups = cfg["groups"]
        self.layer1 = self._stage(mids[0], outs[0], cfg["blocks"][0], cfg["dense"][0], 1, groups)
        self.layer2 = self._stage(mids[1], outs[1], cfg["blocks"][1], cfg["dense"][1], 2, groups)
        self.layer3 = self._stage(mids[2], outs[2], cfg["blocks"][2], cfg["dense"][2], 2, groups)
        self.layer4 = self._stage(mids[3], outs[3], cfg["blocks"][3], cfg["dense"][3], 2, groups)
        self.linear = nn.Linear(self.last, num_classes)

    def _stage(self, mid, out, blocks, dense, stride, groups):
        layers = []
        for i, s in enumerate([stride] + [1] * (blocks - 1)):
            layers.append(DualPathBlock(self.last, mid, out, dense, s, i == 0, groups))
            self.last = out + (i + 2) * dense
        return nn.Sequential(*layers)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = F.avg_pool2d(x, x.shape[-1])
        return self.linear(x.reshape(x.shape[0], -1))


def dpn26(num_classes=10, shrink=1):
    cfg = {
        "stem": 64 // shrink,
        "mid": [c // shrink for c in (96, 192, 384, 768)],
        "out": [c // shrink for c in (256, 512, 1024, 2048)],
        "blocks": (2, 2, 2, 2),
        "dense": [c // shrink for c in (16, 32, 24, 128)],
        "groups": 32 // shrink,
    }
    return DPN(cfg, num_classes)
