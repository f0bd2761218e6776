"""Gradients of the parts against slow references: finite differences in float64, or formulas written out in NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

from binarize.config import ConvConfig
from binarize.nn import BinaryConv2d, BoxScale, ChannelGate, ElasticLink, RPReLU, SpatialScale
from binarize.nn.binary_conv import conv_geometry


def check(part, *inputs):
    """The gradients of inputs and parameters that `part` computes are those of finite differences."""
    part = part.double()
    inputs = [x.double().requires_grad_() for x in inputs]
    parameters = dict(part.named_parameters())

    def run(*values):
        given, own = values[: len(inputs)], dict(zip(parameters, values[len(inputs) :], strict=True))
        return torch.func.functional_call(part, own, tuple(given))

    assert gradcheck(run, (*inputs, *parameters.values()))


def test_gate():
    check(ChannelGate(8, 3, reduction=2), torch.randn(2, 3, 2, 2), torch.randn(2, 8, 3, 3))


def test_spatial_scale():
    part = SpatialScale(2, 3)
    part.rows.data += torch.randn(2, 1)
    check(part, torch.randn(2, 4, 2, 3), torch.randn(2, 4, 2, 3))


def test_rprelu():
    part = RPReLU(3)
    for parameter in part.parameters():
        parameter.data += 0.3 * torch.randn(3)
    check(part, torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize("conv", [nn.Conv2d(4, 10, 3, 2, 1), nn.Conv2d(10, 4, 1), nn.Conv2d(6, 6, 3, (1, 2), groups=2)])
@pytest.mark.parametrize("pool", ["avg", "max"])
def test_elastic_link(conv, pool):
    link = ElasticLink(conv_geometry(conv), pool=pool)
    link.gamma.data += torch.randn_like(link.gamma)
    check(link, torch.randn(2, conv.in_channels, 5, 6))


def test_box_scale_passes_no_gradient_to_its_input():
    part = BoxScale(conv_geometry(nn.Conv2d(3, 2, 3, padding=1)))
    out, x = (torch.randn(1, c, 4, 4).double().requires_grad_() for c in (2, 3))
    upstream = torch.randn(1, 2, 4, 4).double()
    (part.double()(out, x) * upstream).sum().backward()
    assert x.grad is None  # K is detached
    torch.testing.assert_close(out.grad, upstream * part(torch.ones_like(out), x))


@pytest.mark.parametrize("gradient", ["approx", "clip"])
@pytest.mark.parametrize("geometry", [(3, 1, 1, 1, 1), (3, 2, 2, 2, 1), (1, 1, 0, 1, 2)])
def test_input_threshold_and_scale_of_a_conv_with_zero_padding(gradient, geometry):
    """Padding is 0, not a sign: it has no part in any gradient."""
    kernel, stride, padding, dilation, groups = geometry
    parts = ConvConfig(scale="learned", activation_gradient=gradient)
    conv = BinaryConv2d(4, 6, kernel, stride, padding, dilation, groups, bias=False, parts=parts)
    conv.threshold.data += 0.3 * torch.randn(4)
    x = torch.randn(2, 4, 6, 7, requires_grad=True)
    out = conv(x)
    upstream = torch.randn_like(out)
    (out * upstream).sum().backward()

    distance = (x - conv.threshold.view(1, -1, 1, 1)).detach()
    signs = torch.where(distance > 0, 1.0, -1.0).requires_grad_()
    weight = torch.where(conv.weight > 0, 1.0, -1.0)
    integers = F.conv2d(signs, weight, None, stride, padding, dilation, groups)
    (integers * conv.weight_scale.factor.detach().view(1, -1, 1, 1) * upstream).sum().backward()
    magnitude = distance.abs().numpy()
    window = {"clip": magnitude <= 1, "approx": np.clip(2 - 2 * magnitude, 0, None)}[gradient]
    expected = signs.grad.numpy() * window
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(conv.threshold.grad.numpy(), -expected.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)
    of_scale = (integers.detach() * upstream).sum((0, 2, 3))
    torch.testing.assert_close(conv.weight_scale.factor.grad, of_scale, rtol=1e-4, atol=1e-4)


def test_xnors_centred_and_clamped_weights():
    """W' = clamp(W - mean over channels), alpha = mean |W'|; the gradient goes through all three."""
    conv = BinaryConv2d(4, 2, 3, bias=False, parts=ConvConfig(weights="centred", weight_gradient="exact"))
    conv.weight.data.normal_()
    x = torch.randn(2, 4, 5, 5)
    out = conv(x)
    upstream = torch.randn_like(out)
    (out * upstream).sum().backward()

    latent = conv.weight.detach().numpy()
    shifted = latent - latent.mean(1, keepdims=True)
    centred = np.clip(shifted, -1, 1)
    signs, alpha = np.where(centred > 0, 1.0, -1.0), np.abs(centred).mean((1, 2, 3), keepdims=True)
    effective = torch.from_numpy(alpha * signs).float().requires_grad_()
    (F.conv2d(torch.where(x > 0, 1.0, -1.0), effective) * upstream).sum().backward()
    g = effective.grad.numpy()
    through_alpha = signs / signs[0].size * (g * signs).sum((1, 2, 3), keepdims=True)
    of_centred = (alpha * g + through_alpha) * (np.abs(shifted) <= 1)
    expected = of_centred - of_centred.mean(1, keepdims=True)
    np.testing.assert_allclose(conv.weight.grad.numpy(), expected, rtol=1e-3, atol=1e-4)
