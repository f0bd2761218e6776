"""The binary conv against float convolution of signs, and its gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from binarize.config import ConvConfig
from binarize.nn import BinaryConv2d, RPReLU


def test_forward_is_scale_times_conv_of_signs():
    conv = BinaryConv2d(6, 4, 3, 2, 1, bias=True)
    conv.threshold.data.normal_()
    x = torch.randn(2, 6, 9, 9)
    signs = torch.where(x > conv.threshold.view(1, -1, 1, 1), 1.0, -1.0)
    weight = torch.where(conv.weight > 0, 1.0, -1.0)
    accumulator = F.conv2d(signs, weight, None, 2, 1)
    assert torch.equal(accumulator, accumulator.round())
    scale = conv.weight.abs().mean((1, 2, 3)).view(1, -1, 1, 1)
    torch.testing.assert_close(conv(x), accumulator * scale + conv.bias.view(1, -1, 1, 1))


def test_padded_taps_contribute_nothing():
    conv = BinaryConv2d(1, 1, 3, padding=1, bias=False, parts=ConvConfig(scale="none"))
    conv.weight.data.fill_(1.0)
    out = conv(torch.ones(1, 1, 3, 3))
    assert out.flatten().tolist() == [4, 6, 4, 6, 9, 6, 4, 6, 4]


def test_from_float_keeps_weights_geometry_and_mode():
    conv = nn.Conv2d(4, 8, (3, 2), (2, 1), "valid", (1, 2), 2).double().eval()
    binary = BinaryConv2d.adopt(copy.deepcopy(conv))
    assert torch.equal(binary.weight, conv.weight) and torch.equal(binary.bias, conv.bias)
    assert not binary.training and binary.threshold.dtype == torch.float64
    x = torch.randn(1, 4, 7, 7, dtype=torch.float64)
    assert binary(x).shape == conv(x).shape


@pytest.mark.parametrize("kernel", [2, 3, (2, 3)])
def test_same_padding_matches_the_float_conv(kernel):
    conv = nn.Conv2d(3, 5, kernel, padding="same")
    assert BinaryConv2d.adopt(conv)(torch.randn(1, 3, 6, 6)).shape == (1, 5, 6, 6)


def test_every_parameter_gets_a_gradient():
    conv = BinaryConv2d(3, 3, 3, padding=1)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    conv(x).square().sum().backward()
    for tensor in (x, conv.weight, conv.threshold, conv.bias):
        assert tensor.grad.abs().sum() > 0


def test_stage_one_uses_the_latent_weights():
    conv = BinaryConv2d(3, 2, 1, bias=False)
    conv.weight_bits = 32
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(conv(x), F.conv2d(torch.where(x > 0, 1.0, -1.0), conv.weight))


def test_rprelu_is_prelu_with_shifts():
    layer = RPReLU(2)
    layer.shift_in.data = torch.tensor([1.0, 0.0])
    layer.shift_out.data = torch.tensor([0.0, 5.0])
    x = torch.tensor([[2.0, -4.0]])
    assert layer(x).tolist() == [[1.0, 4.0]]
    assert RPReLU(2, shifts=False)(x).tolist() == [[2.0, -1.0]]
