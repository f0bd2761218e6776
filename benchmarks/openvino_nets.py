"""Binary networks made of OpenVINO's own BinaryConvolution: the peer that is not beaten for lack of trying.

OpenVINO fuses `FakeQuantize(levels=2) -> BinaryConvolution -> scale, shift, residual -> FakeQuantize` and packs bits in
between. The operator takes bits 0 and 1, weights packed with the first channel in the lowest bit, and lets padded taps
contribute nothing (`pad_value` 0). It knows no groups. Weights are random; stem, pooling and classifier are float.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.kernels import Layer


class Builder:
    """An OpenVINO graph that grows by layers; every method takes and returns a node."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        import openvino
        from openvino import opset1, opset13

        self.openvino, self.opset1, self.ops = openvino, opset1, opset13
        self.random = np.random.default_rng(0)
        self.kept: list[np.ndarray] = []  # constants share their arrays' memory
        self.input = opset13.parameter(shape, np.float32, name="input")

    def model(self, output: Any) -> Any:
        """The finished model."""
        return self.openvino.Model([output], [self.input], "peer")

    def vector(self, channels: int, center: float, spread: float) -> Any:
        """A constant per channel, [1, C, 1, 1]."""
        values = center + spread * self.random.standard_normal((1, channels, 1, 1))
        return self.ops.constant(values.astype(np.float32))

    def signs(self, x: Any) -> Any:
        """Bits: 1 where x is greater than the channel's threshold."""
        threshold = self.vector(x.shape[1], 0, 0.1)
        zero, one = (self.ops.constant(np.full((1, 1, 1, 1), value, np.float32)) for value in (0, 1))
        return self.ops.fake_quantize(x, threshold, threshold, zero, one, levels=2)

    def binary_conv(self, bits: Any, channels: int, kernel: int, stride: int = 1) -> Any:
        """BinaryConvolution with a scale and a shift per channel."""
        shape = [channels, bits.shape[1], kernel, kernel]
        packed = np.packbits(self.random.integers(0, 2, int(np.prod(shape)), dtype=np.uint8), bitorder="little")
        self.kept.append(packed)
        tensor = self.openvino.Tensor(packed, self.openvino.Shape(shape), self.openvino.Type.u1)
        weight = self.openvino.op.Constant(tensor, shared_memory=False)
        pads = [kernel // 2] * 2
        y = self.opset1.binary_convolution(bits, weight, [stride] * 2, pads, pads, [1, 1], "xnor-popcount", 0.0)
        fan_in = shape[1] * kernel * kernel
        scale = self.vector(channels, fan_in**-0.5, 0.1 * fan_in**-0.5)
        return self.ops.add(self.ops.multiply(y, scale), self.vector(channels, 0, 0.1))

    def float_conv(self, x: Any, channels: int, kernel: int, stride: int = 1) -> Any:
        """Convolution with a bias."""
        shape = (channels, x.shape[1], kernel, kernel)
        weight = self.random.standard_normal(shape) * float(np.prod(shape[1:])) ** -0.5
        pads = [kernel // 2] * 2
        y = self.ops.convolution(x, self.ops.constant(weight.astype(np.float32)), [stride] * 2, pads, pads, [1, 1])
        return self.ops.add(y, self.vector(channels, 0, 0.1))

    def stem(self) -> Any:
        """ResNet's: 7x7 stride 2, ReLU, 3x3 max pooling stride 2."""
        x = self.ops.relu(self.float_conv(self.input, 64, 7, 2))
        return self.ops.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)

    def classifier(self, x: Any, classes: int = 1000) -> Any:
        """Global average pooling and a linear layer."""
        pooled = self.ops.reduce_mean(x, self.ops.constant(np.array([2, 3])), keep_dims=False)
        weight = self.random.standard_normal((classes, x.shape[1])) * 0.02
        return self.ops.matmul(pooled, self.ops.constant(weight.astype(np.float32)), False, True)


def bireal18() -> Any:
    """Bi-Real Net 18 (Liu et al. 2018): an identity around every binary 3x3, float 1x1 after pooling for the others."""
    b = Builder((1, 3, 224, 224))
    x = b.stem()
    for stage, channels in enumerate((64, 128, 256, 512)):
        for conv in range(4):
            stride = 2 if stage > 0 and conv == 0 else 1
            shortcut = x
            if stride == 2:
                shortcut = b.ops.avg_pool(x, [2, 2], [0, 0], [0, 0], [2, 2], True)
                shortcut = b.float_conv(shortcut, channels, 1)
            x = b.ops.add(b.binary_conv(b.signs(x), channels, 3, stride), shortcut)
    return b.model(b.classifier(x))


def binary_resnet50() -> Any:
    """ResNet-50 with every conv but the stem binary, projections included, and its own residuals only."""
    b = Builder((1, 3, 224, 224))
    x = b.stem()
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            bits = b.signs(x)
            y = b.binary_conv(bits, width, 1)
            y = b.binary_conv(b.signs(y), width, 3, stride)
            y = b.binary_conv(b.signs(y), 4 * width, 1)
            shortcut = b.binary_conv(bits, 4 * width, 1, stride) if block == 0 else x
            x = b.ops.add(y, shortcut)
    return b.model(b.classifier(x))


def chain(layer: Layer, links: int) -> Any:
    """`links` convs of the layer's shape, every second one with its channels swapped; floats in and out."""
    b = Builder((1, layer.channels, layer.size, layer.size))
    x: Any = b.input
    for link in range(links):
        out_channels = layer.channels if link % 2 else layer.out_channels
        x = b.binary_conv(b.signs(x), out_channels, layer.kernel, layer.stride)
    return b.model(x)


NETS: dict[str, Callable[[], Any]] = {"bireal18": bireal18, "binary_resnet50": binary_resnet50}


def build(name: str) -> Any:
    """One of `NETS`, or `layer:KERNEL:CHANNELS:OUT:SIZE:STRIDE:LINKS`."""
    if name in NETS:
        return NETS[name]()
    match = re.fullmatch(r"layer:(\d+):(\d+):(\d+):(\d+):(\d+):(\d+)", name)
    if match is None:
        raise ValueError(f"there is no network {name!r}")
    kernel, channels, out, size, stride, links = map(int, match.groups())
    return chain(Layer(kernel, channels, out, size, stride), links)
