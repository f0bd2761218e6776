"""RegNet (Radosavovic et al., "Designing Network Design Spaces", 2020) for 32x32 images: RegNetX and, gated, RegNetY.

Style: a dataclass of settings, typed code, ordered dictionaries with telling names, sequential subclasses.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["regnet_x_200mf", "regnet_y_400mf"]


@dataclass(frozen=True)
class RegNetSettings:
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group_width: int
    se_ratio: float = 0.0
    strides: tuple[int, ...] = (1, 1, 2, 2)


class ConvNormAct(nn.Sequential):
    def __init__(self, inp: int, out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv"] = nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        parts["norm"] = nn.BatchNorm2d(out)
        if act:
            parts["act"] = nn.ReLU(inplace=True)
        super().__init__(parts)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, reduced, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(reduced, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class BottleneckBlock(nn.Module):
    def __init__(self, inp: int, out: int, stride: int, group_width: int, se_ratio: float) -> None:
        super().__init__()
        steps: list[tuple[str, nn.Module]] = [
            ("a", ConvNormAct(inp, out, 1)),
            ("b", ConvNormAct(out, out, 3, stride, groups=out // group_width)),
        ]
        if se_ratio > 0:
            steps.append(("se", SqueezeExcite(out, round(inp * se_ratio))))
        steps.append(("c", ConvNormAct(out, out, 1, act=False)))
        self.residual = nn.Sequential(OrderedDict(steps))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inp != out:
            self.shortcut = ConvNormAct(inp, out, 1, stride, act=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(x) + self.residual(x))


class RegNet(nn.Module):
    def __init__(self, settings: RegNetSettings, num_classes: int = 10) -> None:
        super().__init__()
        stem, inp = ConvNormAct(3, 64, 3), 64
        stages: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
        rows = zip(settings.depths, settings.widths, settings.strides, strict=True)
        for number, (depth, width, stride) in enumerate(rows, start=1):
            blocks = OrderedDict()
            for index in range(depth):
                step = stride if index == 0 else 1
                blocks[f"block{index}"] = BottleneckBlock(inp, width, step, settings.group_width, settings.se_ratio)
                inp = width
            stages[f"stage{number}"] = nn.Sequential(blocks)
        self.trunk = nn.Sequential(stages)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(inp, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


def regnet_x_200mf(num_classes: int = 10) -> RegNet:
    return RegNet(RegNetSettings((1, 1, 4, 7), (24, 56, 152, 368), 8), num_classes)


def regnet_y_400mf(num_classes: int = 10) -> RegNet:
    return RegNet(RegNetSettings((1, 2, 7, 12), (32, 64, 160, 384), 16, se_ratio=0.25), num_classes)
