"""MobileNet v1 of Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications"
(2017), table 1: a strided stem and 13 pairs of a depthwise 3x3 and a 1x1 conv. torchvision has only its successors.
"""

from __future__ import annotations

from torch import Tensor, nn

# Output channels and stride of each pair.
PAIRS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


def conv(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Conv, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class MobileNetV1(nn.Module):
    """Images [N, 3, 224, 224] to logits [N, num_classes].

    Args:
        width: multiplier of all channel counts ("alpha" in the paper).
    """

    def __init__(self, num_classes: int = 1000, width: float = 1.0) -> None:
        super().__init__()
        channels = round(32 * width)
        layers = [conv(3, channels, 3, stride=2)]
        for out_channels, stride in PAIRS:
            wide = round(out_channels * width)
            layers += [conv(channels, channels, 3, stride, groups=channels), conv(channels, wide, 1)]
            channels = wide
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


def mobilenet_v1(num_classes: int = 1000, width: float = 1.0) -> MobileNetV1:
    """The network with random weights."""
    return MobileNetV1(num_classes, width)
