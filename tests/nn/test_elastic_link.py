"""The link always has the conv's shape, and computes what docs/ops.md says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from binarize.nn import ElasticLink
from binarize.nn.binary_conv import conv_geometry
from binarize.nn.functional import elastic_link


@st.composite
def convs(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
    kernel, dilation = draw(pair), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    conv = nn.Conv2d(
        groups * draw(st.integers(1, 5)),
        groups * draw(st.integers(1, 5)),
        kernel,
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        dilation,
        groups,
    )
    low = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    size = (draw(st.integers(low[0], low[0] + 7)), draw(st.integers(low[1], low[1] + 7)))
    return conv, size


def windows(g, height, width):
    """docs/ops.md: each output's place `(o, i, k)`, its source channels, its window's rows and columns in the map."""
    group_in, group_out = g.in_channels // g.groups, g.out_channels // g.groups
    rows, columns = g.output_size(height, width)
    for o in range(g.out_channels):
        group, j = divmod(o, group_out)
        sources = [j % group_in] if group_out >= group_in else range(j, group_in, group_out)
        for i in range(rows):
            for k in range(columns):
                top, left = i * g.stride[0] + g.link_offset(0), k * g.stride[1] + g.link_offset(1)
                across = slice(max(left, 0), max(left + g.stride[1], 0))
                down = slice(max(top, 0), max(top + g.stride[0], 0))
                yield (o, i, k), [group * group_in + s for s in sources], down, across


def by_definition(x, g):
    """The mean of each window, one output value at a time."""
    out = np.zeros((len(x), g.out_channels, *g.output_size(*x.shape[2:])))
    for place, channels, down, across in windows(g, *x.shape[2:]):
        window = x[:, channels, down, across]
        count = window.shape[2] * window.shape[3]
        if count:
            out[:, *place] = window.sum((1, 2, 3)) / count
    return out


def largest_by_definition(x, gamma, upstream, g):
    """The largest value of each window, summed over the source channels, times gamma; the gradients of x and gamma."""
    out, of_x, of_gamma = np.zeros(upstream.shape), np.zeros(x.shape), np.zeros(gamma.shape)
    for (o, i, k), channels, down, across in windows(g, *x.shape[2:]):
        for n in range(len(x)):
            for c in channels:
                window = x[n, c, down, across]
                if window.size:
                    row, column = np.unravel_index(window.argmax(), window.shape)
                    out[n, o, i, k] += gamma[o] * window[row, column]
                    of_x[n, c, down, across][row, column] += gamma[o] * upstream[n, o, i, k]
                    of_gamma[o] += window[row, column] * upstream[n, o, i, k]
    return out, of_x, of_gamma


@settings(max_examples=150, deadline=None)
@given(convs(), st.integers(0, 2**31))
def test_shape_and_value_for_every_configuration(drawn, seed):
    conv, size = drawn
    geometry = conv_geometry(conv)
    x = torch.randn(2, conv.in_channels, *size, generator=torch.Generator().manual_seed(seed))
    link = elastic_link(x, geometry)
    assert link.shape == conv(x).shape
    np.testing.assert_allclose(link.numpy(), by_definition(x.numpy().astype(float), geometry), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(convs())
def test_max_pooling_keeps_the_shape(drawn):
    conv, size = drawn
    x = torch.randn(1, conv.in_channels, *size)
    link = ElasticLink(conv_geometry(conv), pool="max")
    assert link(x).shape == conv(x).shape
    assert torch.isfinite(link(x)).all()


@pytest.mark.parametrize("signs", ["negative", "mixed"])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, 2, 1),  # rows: the last window is cut
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.Conv2d(8, 3, 3, 2, 1),
        nn.Conv2d(4, 10, 3, (2, 3), 1, groups=2),
        nn.Conv2d(10, 4, 3, (1, 2), 1, groups=2),
        nn.Conv2d(5, 2, 1, 2, 1),  # the first window is cut
        nn.Conv2d(2, 5, 1, 2, 3),  # the first window is off the map
        nn.Conv2d(3, 3, 5, 2),  # the map's border is in no window
        nn.Conv2d(3, 6, 2, 3, 0, 2),
    ],
    ids=str,
)
def test_max_pooling_is_each_windows_largest_value_and_passes_the_gradient_to_it(conv, signs):
    geometry = conv_geometry(conv)
    x = torch.randn(2, conv.in_channels, 7, 6).double()
    x = (-x.abs() - 0.1 if signs == "negative" else x).requires_grad_()
    link = ElasticLink(geometry, pool="max").double()
    link.gamma.data += torch.randn(conv.out_channels)
    out = link(x)
    upstream = torch.randn_like(out)
    (out * upstream).sum().backward()
    parts = (x.detach(), link.gamma.detach(), upstream)
    expected, of_x, of_gamma = largest_by_definition(*(part.numpy() for part in parts), geometry)
    np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(x.grad.numpy(), of_x, atol=1e-12)
    np.testing.assert_allclose(link.gamma.grad.numpy(), of_gamma, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, 1), (1, 2, 0), (7, 2, 3), (2, 2, 0), (4, 4, 0), (5, 2, 2)]
)
def test_usual_strided_convs_are_plain_average_pooling(kernel, stride, padding):
    conv = nn.Conv2d(4, 4, kernel, stride, padding)
    x = torch.randn(1, 4, 16, 16)
    expected = nn.functional.avg_pool2d(x, stride, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(elastic_link(x, conv_geometry(conv)), expected)


def test_squeeze_of_expand_gives_each_channel_back_times_its_copies():
    x = torch.randn(2, 6, 4, 4)
    wide = elastic_link(x, conv_geometry(nn.Conv2d(6, 18, 1)))
    torch.testing.assert_close(elastic_link(wide, conv_geometry(nn.Conv2d(18, 6, 1))), 3 * x)


def test_gamma_starts_so_that_a_squeeze_is_a_mean():
    link = ElasticLink(conv_geometry(nn.Conv2d(24, 16, 1)))
    x = torch.ones(1, 24, 2, 2)
    assert torch.equal(link(x), torch.ones(1, 16, 2, 2))
    assert ElasticLink(conv_geometry(nn.Conv2d(24, 16, 1)), gamma="scalar").gamma.shape == (1,)
