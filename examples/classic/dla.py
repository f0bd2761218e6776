"""Deep layer aggregation (Yu et al., "Deep Layer Aggregation", 2017): trees of blocks joined by root convs.

Style: a recursive module whose forward collects its children's outputs in a Python list.
"""

import torch
from torch import nn

__all__ = ["dla34_cifar"]


def conv_norm(inp, out, kernel=3, stride=1, act=True):
    layers = [nn.Conv2d(inp, out, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(out)]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


class Block(nn.Module):
    def __init__(self, inp, out, stride=1):
        super().__init__()
        self.body = nn.Sequential(conv_norm(inp, out, 3, stride), conv_norm(out, out, act=False))
        self.skip = nn.Identity() if stride == 1 and inp == out else conv_norm(inp, out, 1, stride, act=False)

    def forward(self, x):
        return torch.nn.functional.relu(self.body(x).add(self.skip(x)))


class Root(nn.Module):
    def __init__(self, inp, out):
        super().__init__()
        self.join = conv_norm(inp, out, 1)

    def forward(self, *parts):
        return self.join(torch.cat(parts, dim=1))


class Tree(nn.Module):
    def __init__(self, inp, out, level=1, stride=1):
        super().__init__()
        self.level = level
        self.left = nn.ModuleList()
        self.prev = Block(inp, out, stride) if level > 1 else None
        for depth in reversed(range(1, level)):
            self.left.append(Tree(inp if not len(self.left) else out, out, depth, stride if not len(self.left) else 1))
        last = Block(inp, out, stride) if level == 1 else Block(out, out)
        self.pair = nn.ModuleList([last, Block(out, out)])
        self.root = Root((level + 2) * out if level > 1 else 2 * out, out)

    def forward(self, x):
        gathered = [self.prev(x)] if self.level > 1 else []
        for tree in self.left:
            x = tree(x)
            gathered.append(x)
        for block in self.pair:
            x = block(x)
            gathered.append(x)
        return self.root(*gathered)


class DLA(nn.Module):
    def __init__(self, num_classes=10, width=16):
        super().__init__()
        w = width
        self.base = nn.Sequential(conv_norm(3, w), conv_norm(w, w), conv_norm(w, 2 * w))
        self.trees = nn.Sequential(
            Tree(2 * w, 4 * w, 1), Tree(4 * w, 8 * w, 2, 2), Tree(8 * w, 16 * w, 2, 2), Tree(16 * w, 32 * w, 1, 2)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(32 * w, num_classes)

    def forward(self, images):
        features = self.trees(self.base(images))
        return self.linear(self.pool(features).squeeze(-1).squeeze(-1))


def dla34_cifar(num_classes=10, width=16):
    return DLA(num_classes, width)
