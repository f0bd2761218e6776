"""EfficientNet-B0 (Tan and Le, "EfficientNet", 2019) at the resolution of 32x32 images.

Style: a dictionary of settings, swish written as x * sigmoid(x), drop-connect that asks `self.training`.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ["efficientnet_b0_cifar"]

B0 = {
    "expansion": (1, 6, 6, 6, 6, 6, 6),
    "out": (16, 24, 40, 80, 112, 192, 320),
    "repeats": (1, 2, 2, 3, 3, 4, 1),
    "kernel": (3, 3, 5, 3, 5, 5, 3),
    "stride": (1, 2, 2, 2, 1, 2, 1),
    "drop_connect": 0.2,
    "dropout": 0.2,
}


def swish(x):
    return x * x.sigmoid()


def drop_connect(x, rate):
    keep = 1.0 - rate
    mask = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep)
    return x.div(keep).mul(mask)


class Gate(nn.Module):
    def __init__(self, channels, reduced):
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, kernel_size=1)
        self.restore = nn.Conv2d(reduced, channels, kernel_size=1)

    def forward(self, x):
        gate = F.adaptive_avg_pool2d(x, (1, 1))
        return x * self.restore(swish(self.reduce(gate))).sigmoid()


class MBConv(nn.Module):
    def __init__(self, inp, out, kernel, stride, expand, drop_rate):
        super().__init__()
        self.stride, self.expand, self.drop_rate = stride, expand, drop_rate
        mid = inp * expand
        self.conv1 = nn.Conv2d(inp, mid, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, kernel, stride, padding=(kernel - 1) // 2, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.gate = Gate(mid, max(1, inp // 4))
        self.conv3 = nn.Conv2d(mid, out, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.has_skip = stride == 1 and inp == out

    def forward(self, x):
        out = x if self.expand == 1 else swish(self.bn1(self.conv1(x)))
        out = swish(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.gate(out)))
        if self.has_skip:
            if self.training and self.drop_rate > 0:
                out = drop_connect(out, self.drop_rate)
            out = out + x
        return out


class EfficientNet(nn.Module):
    def __init__(self, cfg, num_classes=10):
        super().__init__()
        self.cfg = cfg
        self.conv1 = nn.Conv2d(3, 32, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.layers = self._make_layers(32)
        self.linear = nn.Linear(cfg["out"][-1], num_classes)

    def _make_layers(self, inp):
        layers, index, total = [], 0, sum(self.cfg["repeats"])
        rows = zip(*[self.cfg[key] for key in ("expansion", "out", "repeats", "kernel", "stride")], strict=True)
        for expansion, out, repeats, kernel, stride in rows:
            for step in [stride] + [1] * (repeats - 1):
                drop = self.cfg["drop_connect"] * index / total
                layers.append(MBConv(inp, out, kernel, step, expansion, drop))
                inp, index = out, index + 1
        return nn.Sequential(*layers)

    def forward(self, x):
        out = swish(self.bn1(self.conv1(x)))
        out = self.layers(out)
        out = F.adaptive_avg_pool2d(out, 1)
        out = out.view(out.size(0), -1)
        if self.training and self.cfg["dropout"] > 0:
            out = F.dropout(out, p=self.cfg["dropout"])
        return self.linear(out)


def efficientnet_b0_cifar(num_classes=10, repeats=B0["repeats"]):
    return EfficientNet({**B0, "repeats": repeats}, num_classes)
