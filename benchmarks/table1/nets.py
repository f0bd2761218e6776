"""The paper's nets with stems for small images, and smaller ones for a CPU. Torchvision's blocks and names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from examples.cifar_resnet import CifarResNet


class HalfResNet(ResNet):
    """Half the channels everywhere behind the stem."""

    def _make_layer(
        self, block: type[BasicBlock | Bottleneck], planes: int, *args: Any, **kwargs: Any
    ) -> nn.Sequential:
        return super()._make_layer(block, planes // 2, *args, **kwargs)


def _resnet(block: type[BasicBlock | Bottleneck], layers: list[int], classes: int, kind: type = ResNet) -> nn.Module:
    """A torchvision ResNet whose stem is 3x3 with stride 1, so that 64x64 images give maps as 128x128 ones do."""
    net = kind(block, layers)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.fc = nn.Linear(net.inplanes, classes)
    return net


_MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Channels and stride of MobileNetV1's 13 blocks (Howard et al., 2017, Table 1)."""


class MobileNetV1(nn.Module):
    """Depthwise-separable blocks behind a stem of stride 1, as is usual for small images.

    Args:
        classes: outputs.
        width: factor of all channels.
    """

    def __init__(self, classes: int, width: float = 1.0) -> None:
        super().__init__()
        channels = round(32 * width)
        layers = [_conv(3, channels, 3, 1, 1)]
        for out, stride in _MOBILENET:
            out = round(out * width)
            layers += [_conv(channels, channels, 3, stride, channels), _conv(channels, out, 1, 1, 1)]
            channels = out
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


NETS: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": lambda classes: _resnet(BasicBlock, [2, 2, 2, 2], classes),
    "resnet26": lambda classes: _resnet(Bottleneck, [2, 2, 2, 2], classes),
    "mobilenetv1": lambda classes: MobileNetV1(classes),
    "resnet34": lambda classes: _resnet(BasicBlock, [3, 4, 6, 3], classes),
    "resnet50": lambda classes: _resnet(Bottleneck, [3, 4, 6, 3], classes),
    "resnet20-cifar": lambda classes: CifarResNet(3, classes),
    "resnet26-half-cifar": lambda classes: _resnet(Bottleneck, [2, 2, 2, 2], classes, HalfResNet),
    "mobilenetv1-half-cifar": lambda classes: MobileNetV1(classes, 0.5),
}
"""Name -> maker of an untrained net with so many outputs; the most telling of the paper's five first."""

PAPER_COLUMN = {
    "resnet26": "ResNet-26",
    "resnet50": "ResNet-50",
    "mobilenetv1": "MobileNetV1",
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "resnet20-cifar": "ResNet-18",
    "resnet26-half-cifar": "ResNet-26",
    "mobilenetv1-half-cifar": "MobileNetV1",
}
"""Where a net's ImageNet numbers stand in Table 1; those of the nearest net, for the small ones."""
