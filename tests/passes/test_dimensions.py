"""Convolutions in every dimension, of every padding, and of classes that compute their own weight or padding."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import binarize
from binarize.exporting import emit, verify
from binarize.lowering import lower
from binarize.nn import BinaryConv, BinaryConv3d, ElasticLink
from binarize.nn.binary_conv import conv_geometry
from binarize.nn.functional import elastic_link
from binarize.passes.lower_dimensions import binary_conv, planes
from binarize.passes.lower_tools import packed_convs
from tests.models import randomized

CLASSES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Standardised(nn.Conv2d):
    """Weight standardisation, with a gain."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 2.0))
        self.scale = 3.0

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = self.gain * (self.weight - mean) / self.weight.std((1, 2, 3), keepdim=True) * self.scale
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Same(nn.Conv2d):
    """Padding as TensorFlow does it."""

    def forward(self, x: Tensor) -> Tensor:
        totals = [
            max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            for size, k, s, d in zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
        ]
        rows, columns = totals
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Squared(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * x)


@st.composite
def drawn_convs(draw: st.DrawFn) -> tuple[nn.Module, list[int]]:
    n, groups = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 1, 2, 3]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(n))

    kernel, dilation = each(1, 4), each(1, 2)
    if n == 3 and draw(st.booleans()):  # factorised, as most video nets have them
        kernel = draw(st.sampled_from([(kernel[0], 1, 1), (1, *kernel[1:])]))
    channels = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 5))
    padding = each(0, 3) if draw(st.booleans()) else tuple(k // 2 for k in kernel)
    conv = CLASSES[n](*channels, kernel, each(1, 3), padding, dilation, groups)
    smallest = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    return conv, [extent + draw(st.integers(0, 4)) for extent in smallest]


@settings(max_examples=150, deadline=None)
@given(drawn_convs(), st.sampled_from(["avg", "max"]))
def test_the_links_shape_is_the_convs_for_every_configuration(drawn: tuple[nn.Module, list[int]], pool: str) -> None:
    conv, size = drawn
    x = torch.randn(1, conv.in_channels, *size)
    link = ElasticLink(conv_geometry(conv), pool=pool)(x)  # type: ignore[arg-type]
    assert link.shape == conv(x).shape and torch.isfinite(link).all()


@settings(max_examples=100, deadline=None)
@given(drawn_convs())
def test_every_dimension_lowers_exactly_to_the_two_dimensional_operator(drawn: tuple[nn.Module, list[int]]) -> None:
    conv, size = drawn
    binary = BinaryConv.adopt(conv)  # type: ignore[arg-type]
    x, o = torch.randn(2, binary.in_channels, *size), binary.out_channels
    one, zero = torch.ones(o), torch.zeros(o)
    signs = [torch.where(t > 0, 1.0, -1.0) for t in (x, binary.weight)]
    pads = [p for p in reversed(binary.geometry.pads[: binary.dims]) for _ in range(2)]
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[binary.dims]
    expected = function(F.pad(signs[0], pads), signs[1], None, binary.stride, 0, binary.dilation, binary.groups)
    weights = planes(binary.weight.detach(), binary.geometry)
    found = binary_conv(x, torch.zeros(binary.in_channels), weights, one, zero, binary.geometry, (one, zero))
    assert torch.equal(found, expected)


def test_an_average_pool_over_fewer_frames_than_its_stride() -> None:
    conv = nn.Conv3d(4, 8, 1, 2)
    x = torch.randn(1, 4, 1, 4, 4)
    assert elastic_link(x, conv_geometry(conv)).shape == conv(x).shape


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_features_pads_before_the_sign(mode: str) -> None:
    conv = nn.Conv2d(4, 6, 3, 1, (1, 2), padding_mode=mode, bias=False)
    binary = BinaryConv.adopt(copy.deepcopy(conv))
    conv.weight.data = torch.where(conv.weight > 0, 1.0, -1.0)
    x = torch.randn(2, 4, 7, 7)
    factor = binary.weight_factor().view(1, -1, 1, 1)
    torch.testing.assert_close(binary(x), conv(torch.where(x > 0, 1.0, -1.0)) * factor)


def test_a_conv_class_keeps_its_weight_transform() -> None:
    conv = Standardised(4, 6, 3, padding=1, bias=False)
    weight = conv.gain * (conv.weight - conv.weight.mean((1, 2, 3), keepdim=True))
    binary = BinaryConv.adopt(conv)
    assert isinstance(binary, Standardised) and set(dict(binary.named_parameters())) >= {"weight", "gain"}
    x = torch.randn(2, 4, 7, 7)
    signs, taps = (torch.where(t > 0, 1.0, -1.0) for t in (x, weight))
    expected = F.conv2d(signs, taps, padding=1) * binary.weight_factor().view(1, -1, 1, 1)
    torch.testing.assert_close(binary(x), expected)
    binary(x).sum().backward()
    assert binary.weight.grad is not None and binary.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [(7, 8), (8, 9), (9, 7)])
def test_padding_that_follows_the_input(size: tuple[int, int]) -> None:
    conv = Same(4, 6, 3, 2)
    x = torch.randn(2, 4, *size)
    expected = conv(x).shape
    binary = BinaryConv.adopt(conv)
    assert binary.geometry.same and binary(x).shape == expected == ElasticLink(binary.geometry)(x).shape
    neutral = torch.ones(6), torch.zeros(6)
    found = binary_conv(
        x,
        binary.threshold,
        planes(binary.weight.detach(), binary.geometry),
        binary.weight_factor(),
        binary.bias.detach(),
        binary.geometry,
        neutral,  # type: ignore
    )
    torch.testing.assert_close(found, binary(x))


@pytest.mark.parametrize("kernel", [(3, 1, 1), (1, 3, 3), (3, 3, 3)])
def test_padding_that_follows_the_input_in_three_dimensions(kernel: tuple[int, ...]) -> None:
    binary = BinaryConv.adopt(nn.Conv3d(4, 6, kernel, (2, 1, 1), bias=False))
    geometry = replace(binary.geometry, same=True)
    x, threshold, one, zero = torch.randn(2, 4, 5, 6, 7), torch.zeros(4), torch.ones(6), torch.zeros(6)
    pads = geometry.at(5, 6, 7).pads
    signs = F.pad(torch.where(x > 0, 1.0, -1.0), [p for a in (2, 1, 0) for p in (pads[a], pads[a + 3])])
    expected = F.conv3d(signs, torch.where(binary.weight > 0, 1.0, -1.0), None, (2, 1, 1))
    weights = planes(binary.weight.detach(), geometry)
    assert torch.equal(binary_conv(x, threshold, weights, one, zero, geometry, (one, zero)), expected)


@pytest.mark.parametrize("conv", [Standardised(4, 4, 3), Same(4, 4, 3), nn.Conv1d(4, 4, 3), nn.Conv3d(4, 4, 3)])
def test_copies_and_pickles_keep_class_and_values(conv: nn.Module) -> None:
    binary = BinaryConv.adopt(conv)  # type: ignore[arg-type]
    x = torch.randn(2, 4, *[7] * binary.dims)
    for twin in (copy.deepcopy(binary), pickle.loads(pickle.dumps(binary))):
        assert type(twin) is type(binary) and torch.equal(twin(x), binary(x))


def test_a_class_that_changes_its_input_stays_float_with_a_reason() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Squared(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    report = binarize.apply(model, torch.randn(2, 3, 12, 12)).report
    assert {d.layer: d.rule for d in report.decisions} == {
        "0": "stem",
        "1": "subclass",
        "2": "eligible",
        "3": "classifier",
    }


@pytest.mark.parametrize("kernel, padding", [((3, 1, 1), (1, 0, 0)), ((1, 3, 3), (0, 1, 1)), ((1, 1, 1), 0)])
def test_a_factorised_conv_of_a_video_is_one_operator(kernel: tuple[int, ...], padding: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Conv3d(3, 8, 1), nn.Conv3d(8, 8, kernel, (2, 1, 1), padding), nn.Conv3d(8, 2, 1))
    x = torch.randn(2, 3, 6, 5, 5)
    module = randomized(binarize.apply(model, x)).eval()
    lowered = lower(module, (x,))
    assert len(packed_convs(lowered.fused)) == 1
    assert verify(lowered, emit(lowered, (x,)), (x,)).nodes >= 1


@pytest.mark.parametrize("n", [1, 3])
def test_signals_and_videos_convert_train_and_export(n: int) -> None:
    conv, norm = CLASSES[n], NORMS[n]
    model = nn.Sequential(
        conv(2, 6, 3, padding=1),
        norm(6),
        nn.ReLU(),
        conv(6, 10, 3, 2, 1, bias=False),
        norm(10),
        nn.ReLU(),
        conv(10, 4, 1),
        nn.ReLU(),
        conv(4, 4, 3, padding=1, dilation=1),
        nn.Flatten(2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    x = torch.randn(2, 2, *[6] * n)
    module = randomized(binarize.apply(model, x)).train()
    assert len(module.report.binarized) == 3
    module(x).square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []
    lowered = lower(module.eval(), (x,))
    torch.testing.assert_close(lowered.original(x), module(x), rtol=1e-4, atol=1e-5)
    assert verify(lowered, emit(lowered, (x,)), (x,)).nodes >= 3


def test_a_video_net_keeps_names() -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.Conv3d(4, 4, 3), nn.Conv3d(4, 2, 1))
    module = binarize.apply(model, torch.randn(2, 3, 6, 8, 8))
    assert isinstance(module.get_submodule("2"), BinaryConv3d)
    assert set(model.state_dict()) <= set(module.state_dict())
