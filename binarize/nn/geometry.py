"""Where a convolution's window lies, and where its Elastic Link looks. Integers only; one place for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from binarize.errors import UnsupportedModelError


@dataclass(frozen=True)
class ConvGeometry:
    """Everything about a convolution in n dimensions but its weights.

    Args:
        in_channels, out_channels: C and O.
        kernel, stride, dilation: per spatial dimension, each >= 1.
        pads: zero padding, all begins, then all ends: (top, left, bottom, right) in two dimensions.
        groups: divides C and O.
        same: the padding follows the input so that the output has `ceil(size / stride)` positions (TensorFlow's
            rule, the odd one at the end); `pads` is then what `at` a size makes of it.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    same: bool = False

    @property
    def dims(self) -> int:
        """n: 1, 2 or 3."""
        return len(self.kernel)

    def at(self, *size: int) -> ConvGeometry:
        """The geometry for an input of `size`, with its padding settled.

        Raises:
            UnsupportedModelError: the padding follows a size that is no number.
        """
        if not self.same:
            return self
        totals = [self._same_padding(axis, extent) for axis, extent in enumerate(size)]
        begins = [total // 2 for total in totals]
        ends = [total - begin for total, begin in zip(totals, begins, strict=True)]
        return replace(self, pads=(*begins, *ends), same=False)

    def _same_padding(self, axis: int, extent: int) -> int:
        """Of both ends together."""
        stride = self.stride[axis]
        if stride == 1:
            return self.span(axis)
        if not isinstance(extent, int):
            raise UnsupportedModelError(
                "its padding follows the size of the map, and a file has room for one padding",
                hint="give maps of one size",
            )
        return max((-(-extent // stride) - 1) * stride + self.span(axis) + 1 - extent, 0)

    @property
    def is_pooling(self) -> bool:
        """Whether `avg_pool2d` has windows like this: no dilation, the same padding at both ends, of half a window."""
        plain = self.dims == 2 and set(self.dilation) == {1} and not self.same
        return plain and self.pads[:2] == self.pads[2:] and all(2 * self.pads[a] <= self.kernel[a] for a in (0, 1))

    def span(self, axis: int) -> int:
        """Distance between the first and the last tap."""
        return self.dilation[axis] * (self.kernel[axis] - 1)

    def output_size(self, *size: int) -> tuple[int, ...]:
        """Extents of the output for an input of `size`."""
        pads = self.at(*size).pads
        return tuple(
            (extent + pads[a] + pads[a + self.dims] - self.span(a) - 1) // self.stride[a] + 1
            for a, extent in enumerate(size)
        )

    def link_offset(self, axis: int) -> int:
        """First position along `axis` that the link of output 0 looks at; may be negative.

        The link of output `i` averages `stride` positions from `i * stride + offset`: the window of the stride's size
        around the centre of the conv's own receptive field (docs/ops.md).
        """
        return -((2 * self.pads[axis] + self.stride[axis] - 1 - self.span(axis)) // 2)

    @property
    def unit_stride(self) -> bool:
        return set(self.stride) == {1}

    @property
    def link_form(self) -> str:
        """`identity`, `expand` (channels are copied) or `squeeze` (channels are summed)."""
        if self.in_channels == self.out_channels:
            return "identity"
        return "expand" if self.out_channels > self.in_channels else "squeeze"

    @property
    def keeps_shape(self) -> bool:
        """Whether an input of any size leaves with the same channels and size."""
        n = self.dims
        fits = self.same or all(self.pads[a] + self.pads[a + n] == self.span(a) for a in range(n))
        return self.link_form == "identity" and self.unit_stride and fits


def padding_pairs(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The order that `torch.nn.functional.pad` wants: last dimension first, begin and end."""
    return [value for pair in zip(reversed(begins), reversed(ends), strict=True) for value in pair]
