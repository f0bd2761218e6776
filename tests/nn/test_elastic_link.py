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


def by_definition(x, g):
    """docs/ops.md, one output value at a time."""
    batch, _, height, width = x.shape
    group_in, group_out = g.in_channels // g.groups, g.out_channels // g.groups
    rows, columns = g.output_size(height, width)
    out = np.zeros((batch, g.out_channels, rows, columns))
    for o in range(g.out_channels):
        group, j = divmod(o, group_out)
        sources = [j % group_in] if group_out >= group_in else range(j, group_in, group_out)
        for i in range(rows):
            for k in range(columns):
                top, left = i * g.stride[0] + g.link_offset(0), k * g.stride[1] + g.link_offset(1)
                window = x[
                    :,
                    [group * group_in + s for s in sources],
                    max(top, 0) : max(top + g.stride[0], 0),
                    max(left, 0) : max(left + g.stride[1], 0),
                ]
                count = window.shape[2] * window.shape[3]
                if count:
                    out[:, o, i, k] = window.sum((1, 2, 3)) / count
    return out


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
