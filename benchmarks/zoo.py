"""The networks that are measured, with random weights (speed does not depend on them), and the targets they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import nn

from binarize.nn import RPReLU
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


def shifted(module: nn.Module) -> nn.Module:
    """A fresh binary `module` with shifts in its activations, as after training: a shift of 0 would cost nothing."""
    torch.manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, RPReLU):
            for shift in (layer.shift_in, layer.shift_out):
                if shift is not None:
                    nn.init.normal_(shift, std=0.1)
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
