"""Where a convolution's window lies, and where its Elastic Link looks. Integers only; one place for both."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConvGeometry:
    """Everything about a 2-d convolution but its weights.

    Args:
        in_channels, out_channels: C and O.
        kernel, stride, dilation: (rows, columns), each >= 1.
        pads: zero padding (top, left, bottom, right), each >= 0.
        groups: divides C and O.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output for an input of `height` x `width`."""
        return (
            (height + self.pads[0] + self.pads[2] - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1,
            (width + self.pads[1] + self.pads[3] - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1,
        )

    def link_offset(self, axis: int) -> int:
        """First row (axis 0) or column (axis 1) that the link of output 0 looks at; may be negative.

        The link of output `i` averages `stride` rows from `i * stride + offset`: the window of the stride's size
        around the centre of the conv's own receptive field (docs/ops.md).
        """
        span = self.dilation[axis] * (self.kernel[axis] - 1)
        return -((2 * self.pads[axis] + self.stride[axis] - 1 - span) // 2)

    @property
    def link_form(self) -> str:
        """`identity`, `expand` (channels are copied) or `squeeze` (channels are summed)."""
        if self.in_channels == self.out_channels:
            return "identity"
        return "expand" if self.out_channels > self.in_channels else "squeeze"

    @property
    def keeps_shape(self) -> bool:
        """Whether an input of any size leaves with the same channels and size."""
        return (
            self.link_form == "identity"
            and self.stride == (1, 1)
            and all(
                self.pads[axis] + self.pads[axis + 2] == self.dilation[axis] * (self.kernel[axis] - 1)
                for axis in (0, 1)
            )
        )
