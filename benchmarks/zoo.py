"""The networks that are measured, with random weights (speed does not depend on them) and activations as after
training (on those it does), and the targets they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import nn

from binarize.nn import BinaryConv2d, RPReLU
from examples.mobilenet_v1 import mobilenet_v1


@dataclass(frozen=True)
class Network:
    """A network at 3 x 224 x 224.

    Attributes:
        title: for tables.
        build: makes the float model.
        against_float, against_int8: how many times as fast as ONNX Runtime's float32, and as the best int8, the binary
            network is meant to be, batch 1, one thread.
        linear: whether its hidden linear layers weigh so much that a variant binarizes them too.
    """

    title: str
    build: Callable[[], nn.Module]
    against_float: float
    against_int8: float
    linear: bool = False

    def model(self) -> nn.Module:
        """The float model, the same weights each time."""
        torch.manual_seed(0)
        return self.build().eval()


def as_trained(module: nn.Module) -> nn.Module:
    """A fresh binary `module` with shifts, slopes and thresholds spread as training spreads them.

    In a fresh one shifts are 0 and cost nothing, all slopes have one positive value, and the readers of a map have one
    threshold and share its bits. Trained nets had slopes of 0.27 +- 0.15 in a channel, some of them negative in nearly
    every layer and one layer in twenty with one above 1, and thresholds that differ by 0.15 to 0.3 within a layer.
    """
    torch.manual_seed(1)
    activations = [layer for layer in module.modules() if isinstance(layer, RPReLU)]
    for number, layer in enumerate(activations):
        for shift in (layer.shift_in, layer.shift_out):
            if shift is not None:
                nn.init.normal_(shift, std=0.1)
        nn.init.normal_(layer.slope, mean=0.27, std=0.15)
        if number % 20 == 0:
            layer.slope.data[0] = 1.2
    for layer in module.modules():
        if isinstance(layer, BinaryConv2d) and layer.threshold.requires_grad:
            layer.threshold.data += 0.2 * torch.randn_like(layer.threshold)
    return module


_MODELS = torchvision.models
NETWORKS: dict[str, Network] = {
    "resnet18": Network("ResNet-18", lambda: _MODELS.resnet18(weights=None), 8, 2.2),
    "resnet34": Network("ResNet-34", lambda: _MODELS.resnet34(weights=None), 8, 2.2),
    "resnet50": Network("ResNet-50", lambda: _MODELS.resnet50(weights=None), 10, 2.8),
    "vgg16": Network("VGG-16", lambda: _MODELS.vgg16(weights=None), 12, 3, linear=True),
    "densenet121": Network("DenseNet-121", lambda: _MODELS.densenet121(weights=None), 5, 1.8),
    "mobilenet_v1": Network("MobileNetV1", mobilenet_v1, 3.4, 1.2),
    "mobilenet_v2": Network("MobileNetV2", lambda: _MODELS.mobilenet_v2(weights=None), 2.5, 1.1),
}
