"""Model-local ONNX functions: `ai.binarize` in standard operators, carried inside every exported file.

A runtime with our op library uses its kernels; any other runtime inlines these bodies and computes the same
values slowly (accumulators exactly, floats to rounding). docs/ops.md is the specification. Extents come
from the tensors' run-time shapes and from attribute references, so one body serves every node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

DOMAIN = "ai.binarize"
OPSET = 18

# Lets a truncating integer division round up for negative numbers too; far above any extent.
_LARGE = 1 << 40


class _Body:
    """Collects the nodes of one function; each method adds nodes and returns the name of their result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def op(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """One standard operator."""
        name = output or f"v{len(self.nodes)}_{op_type.lower()}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        """A constant tensor."""
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(value, dtype=dtype)))

    def with_reference(self, op_type: str, *inputs: str, references: dict[str, tuple[str, Any]]) -> str:
        """An operator whose attributes are those of the function's caller: name -> (caller's name, type)."""
        name = self.op(op_type, *inputs)
        for attribute, (caller, kind) in references.items():
            self.nodes[-1].attribute.append(onnx.AttributeProto(name=attribute, ref_attr_name=caller, type=kind))
        return name

    def int_attribute(self, name: str) -> str:
        """The caller's integer attribute as int64[1]."""
        scalar = self.with_reference("Constant", references={"value_int": (name, onnx.AttributeProto.INT)})
        return self.op("Reshape", scalar, self.constant([1]))

    def ints_attribute(self, name: str) -> str:
        """The caller's integer list as int64[n]."""
        return self.with_reference("Constant", references={"value_ints": (name, onnx.AttributeProto.INTS)})

    def extents(self, tensor: str, start: int, end: int) -> str:
        """Dimensions [start, end) of a tensor as int64[end - start]."""
        return self.op("Shape", tensor, start=start, end=end)

    def floats(self, stream: str) -> str:
        """A feature stream of any element type as float32."""
        return self.op("Cast", stream, to=onnx.TensorProto.FLOAT)

    def concat(self, *parts: str) -> str:
        return self.op("Concat", *parts, axis=0)


def _pack(body: _Body, bits: str, output: str | None = None) -> str:
    """Booleans `[a, b, c, C]` to words `[a, b, c, Wc]`: powers of two per channel, summed over half words."""
    positive = body.op("Cast", bits, to=onnx.TensorProto.INT64)
    channels = body.extents(bits, 3, 4)
    word = body.constant([64])
    words = body.op("Div", body.op("Add", channels, body.constant([63])), word)
    missing = body.op("Sub", body.op("Mul", words, word), channels)
    padded = body.op("Pad", positive, body.concat(body.constant([0] * 7), missing))
    half = body.constant([2, 32])
    by_half = body.op("Reshape", padded, body.concat(body.constant([0, 0, 0]), words, half))
    # ONNX Runtime sums int64 through doubles, which are exact to 53 bits: hence halves of 32.
    powers = body.constant([1 << bit for bit in range(32)])
    sums = body.op("ReduceSum", body.op("Mul", by_half, powers), body.constant([-1]), keepdims=0)
    halves = body.op("Cast", sums, to=onnx.TensorProto.UINT64)
    placed = body.op("BitShift", halves, body.constant([0, 32], np.uint64), direction="LEFT")
    low, high = (body.op("Gather", placed, body.constant(index), axis=4) for index in (0, 1))
    return body.op("BitwiseOr", low, high, output=output)


def _signs(body: _Body, bits: str, channels: str) -> str:
    """Words `[a, b, c, Wc]` to floats `[a, b, c, C]` of +1 and -1."""
    shifts = body.constant(range(64), np.uint64)
    spread = body.op("BitShift", body.op("Unsqueeze", bits, body.constant([-1])), shifts, direction="RIGHT")
    ones = body.op("Cast", body.op("BitwiseAnd", spread, body.constant(1, np.uint64)), to=onnx.TensorProto.FLOAT)
    width = body.op("Mul", body.extents(bits, 3, 4), body.constant([64]))
    flat = body.op("Reshape", ones, body.concat(body.constant([0, 0, 0]), width))
    used = body.op("Slice", flat, body.constant([0]), channels, body.constant([3]))
    return body.op("Sub", body.op("Mul", used, body.constant(2.0, np.float32)), body.constant(1.0, np.float32))


def _planes(body: _Body, channels: str, planes: str) -> str:
    """The planes that the conv reads as images, `[N * planes, C, H, W]`: signs, or the mean of two."""
    one = body.constant([1])
    digits = body.op("Add", body.int_attribute("ternary"), one)
    image, size = body.extents("bits", 0, 1), body.extents("bits", 1, 3)
    words = body.op("Div", body.op("Add", channels, body.constant([63])), body.constant([64]))
    rows = body.op("Mul", body.extents("bits", 1, 2), body.extents("bits", 2, 3))
    first, count = body.int_attribute("first_plane"), body.op("Mul", planes, digits)
    start, end = (body.op("Mul", plane, words) for plane in (first, body.op("Add", first, count)))
    read = body.op("Slice", "bits", start, end, body.constant([3]))
    by_plane = body.op("Reshape", read, body.concat(image, rows, count, words))
    signs = body.op("Reshape", _signs(body, by_plane, channels), body.concat(image, size, planes, digits, channels))
    means = body.op("ReduceMean", signs, body.constant([4]), keepdims=0)
    batch = body.op("Transpose", means, perm=[0, 3, 4, 1, 2])
    return body.op("Reshape", batch, body.concat(body.op("Mul", image, planes), channels, size))


def _accumulators(body: _Body, channels: str, group: str) -> str:
    """All terms `[N, Ho, Wo, terms, O]` by one float Conv of signs; its zero padding is ours, its sums are exact.

    The planes of the input are images of a larger batch, the bases of the weight more output channels of each group.
    """
    planes, bases = body.int_attribute("planes"), body.int_attribute("bases")
    kernel = body.extents("weight", 1, 3)
    rows = body.op("Div", body.extents("weight", 0, 1), bases)
    per_group = body.op("Div", channels, group)
    by_group = body.op("Reshape", _signs(body, "weight", channels), body.concat(bases, rows, kernel, group, per_group))
    grouped = body.op("Transpose", by_group, perm=[4, 0, 1, 5, 2, 3])  # group, base, row, channel of the group, kh, kw
    outputs = body.op("Mul", body.op("Mul", group, bases), rows)
    w = body.op("Reshape", grouped, body.concat(outputs, per_group, kernel))
    ints = onnx.AttributeProto.INTS
    references = {name: (name, ints) for name in ("strides", "pads", "dilations")}
    references["group"] = ("group", onnx.AttributeProto.INT)
    found = body.with_reference("Conv", _planes(body, channels, planes), w, references=references)
    image, size = body.extents("bits", 0, 1), body.extents(found, 2, 4)
    parts = body.op("Reshape", found, body.concat(image, planes, group, bases, rows, size))
    by_term = body.op("Transpose", parts, perm=[0, 5, 6, 3, 1, 2, 4])
    terms, out_channels = body.op("Mul", bases, planes), body.op("Mul", group, rows)
    return body.op("Reshape", by_term, body.concat(image, size, terms, out_channels))


def _sum_of_terms(body: _Body, accumulators: str) -> str:
    """`sum over terms of accumulator * factor * (scale * gate)`, `[N, Ho, Wo, O]`."""
    axis = body.constant([3])
    gate, factor = (body.op("Unsqueeze", name, axis) for name in ("gate", "factor"))
    scaled = body.op("Mul", body.op("Mul", accumulators, factor), body.op("Mul", gate, "scale"))
    return body.op("ReduceSum", scaled, axis, keepdims=0)


def _link_offset(body: _Body) -> str:
    """`ceil((dilation (k-1) - (stride-1) - 2 pad) / 2)` for both axes, int64[2]."""
    strides, dilations = body.ints_attribute("strides"), body.ints_attribute("dilations")
    begin = body.op("Slice", body.ints_attribute("pads"), body.constant([0]), body.constant([2]))
    one, two = body.constant([1]), body.constant([2])
    reach = body.op("Mul", dilations, body.op("Sub", body.extents("weight", 1, 3), one))
    doubled = body.op("Sub", body.op("Sub", reach, body.op("Sub", strides, one)), body.op("Mul", two, begin))
    raised = body.op("Add", doubled, body.constant([2 * _LARGE + 1]))
    return body.op("Sub", body.op("Div", raised, two), body.constant([_LARGE]))


def _window_sums(body: _Body, tensor: str, offset: str, extents: str, strides: str) -> str:
    """Sums over windows of the stride's size, `[a, Ho, Wo, c]`; outside the map there is 0.

    A map smaller than it should be, such as the neutral [1,1,1,1], is padded to the same windows.
    """
    zero = body.constant([0, 0])
    size = body.op("Mul", extents, strides)
    last = body.op("Sub", body.op("Add", offset, size), body.extents(tensor, 1, 3))
    none = body.constant([0])
    before = body.op("Max", body.op("Neg", offset), zero)
    after = body.op("Max", last, zero)
    padded = body.op("Pad", tensor, body.concat(none, before, none, none, after, none))
    start = body.op("Max", offset, zero)
    cropped = body.op("Slice", padded, start, body.op("Add", start, size), body.constant([1, 2]))

    def axis(values: str, index: int) -> str:
        return body.op("Slice", values, body.constant([index]), body.constant([index + 1]))

    shape = body.concat(
        body.extents(tensor, 0, 1),
        axis(extents, 0),
        axis(strides, 0),
        axis(extents, 1),
        axis(strides, 1),
        body.extents(tensor, 3, 4),
    )
    return body.op("ReduceSum", body.op("Reshape", cropped, shape), body.constant([2, 4]), keepdims=0)


def _channel_map(body: _Body, link_channels: str, out_channels: str, group: str) -> str:
    """0/1 matrix `[C, O]`: input i feeds output o where, in one group, they are equal modulo min(c, o)."""
    one = body.constant([1])
    inputs = body.op("Max", body.op("Div", link_channels, group), one)  # the neutral link has 1 channel in all
    outputs = body.op("Div", out_channels, group)
    modulus = body.op("Min", inputs, outputs)

    def place(count: str, per_group: str, axis: int) -> tuple[str, str]:
        scalar = body.op("Squeeze", count, body.constant([0]))
        index = body.op("Range", body.constant(0), scalar, body.constant(1))
        column = body.op("Unsqueeze", index, body.constant([axis]))
        within = body.op("Mod", body.op("Mod", column, per_group), modulus)
        return body.op("Div", column, per_group), within

    group_in, channel_in = place(link_channels, inputs, 1)
    group_out, channel_out = place(out_channels, outputs, 0)
    same = body.op("And", body.op("Equal", group_in, group_out), body.op("Equal", channel_in, channel_out))
    return body.op("Cast", same, to=onnx.TensorProto.FLOAT)


def _elastic_link(body: _Body, outputs: str, group: str) -> str:
    """`EL(link)`: mean over the stride's window, then the channel map; zero for the neutral link."""
    link = body.floats("link")
    extents = body.extents(outputs, 1, 3)
    strides = body.ints_attribute("strides")
    offset = _link_offset(body)
    sums = _window_sums(body, link, offset, extents, strides)
    one = body.constant([1])
    pixels = body.concat(one, body.extents("link", 1, 3), one)
    ones = body.op("ConstantOfShape", pixels, value=numpy_helper.from_array(np.ones(1, dtype=np.float32)))
    counts = _window_sums(body, ones, offset, extents, strides)
    mean = body.op("Div", sums, body.op("Max", counts, body.constant(1.0, np.float32)))
    channels = _channel_map(body, body.extents("link", 3, 4), body.extents(outputs, 3, 4), group)
    return body.op("MatMul", mean, channels)


def _pack_planes(body: _Body, stream: str, threshold: str, output: str) -> None:
    """Planes are columns of a wider map until they are packed."""
    last = body.op("Shape", threshold, start=-1)  # C, or 1 for all channels
    by_plane = body.op("Reshape", threshold, body.concat(body.constant([-1]), last))
    positive = body.op("Greater", body.op("Unsqueeze", body.floats(stream), body.constant([3])), by_plane)
    size, columns, planes = body.extents(stream, 0, 2), body.extents(stream, 2, 3), body.extents(by_plane, 0, 1)
    wide = body.concat(size, body.op("Mul", columns, planes), body.extents(stream, 3, 4))
    words = _pack(body, body.op("Reshape", positive, wide))
    per_pixel = body.op("Mul", body.extents(words, 3, 4), planes)
    body.op("Reshape", words, body.concat(size, columns, per_pixel), output=output)


def _pack_function() -> onnx.FunctionProto:
    body = _Body()
    _pack_planes(body, "x", "threshold", "bits")
    return helper.make_function(
        DOMAIN, "Pack", ["x", "threshold"], ["bits"], body.nodes, [helper.make_opsetid("", OPSET)]
    )


def _activated(body: _Body, t: str) -> str:
    """Residual and activation."""
    t = body.op("Add", t, body.floats("residual"))
    positive = body.op("Greater", t, body.constant(0.0, np.float32))
    return body.op("Where", positive, t, body.op("Mul", "slope", t))


def _outputs(body: _Body, t: str, *, link: bool = False) -> None:
    """What follows the activation: shift, `y` or its squeezed link, and the bits."""
    values = body.op("Add", t, "shift")
    y = body.op("CastLike", values, "residual", output=None if link else "y")
    _pack_planes(body, y, "next_threshold", "next_bits")
    if link:
        channels = _channel_map(body, body.extents(values, 3, 4), body.op("Shape", "gamma"), body.constant([1]))
        sums = body.op("MatMul", values, channels)
        body.op("CastLike", body.op("Mul", sums, "gamma"), "residual", output="y")


def _activate_function(op_type: str, *more: str) -> onnx.FunctionProto:
    """`more`: `gamma`, where the operator gives a link."""
    body = _Body()
    axis = body.constant([3])
    read = body.op("Slice", "x", body.constant([0]), body.int_attribute("channels"), axis)  # ends where x does
    gated = body.op("Mul", body.floats(read), "gate")
    scaled = body.op("Add", body.op("Mul", gated, "scale"), "bias")
    _outputs(body, _activated(body, scaled), link=bool(more))
    return helper.make_function(
        DOMAIN,
        op_type,
        ["x", "gate", "scale", "bias", "residual", "slope", "shift", "next_threshold", *more],
        ["y", "next_bits"],
        body.nodes,
        [helper.make_opsetid("", OPSET)],
        attributes=["channels"],
    )


def _place_function() -> onnx.FunctionProto:
    body = _Body()
    axis, zero, first = body.constant([3]), body.constant([0]), body.int_attribute("first")
    channels = body.int_attribute("channels")
    wide = body.op("Expand", "into", body.concat(body.extents("x", 0, 3), channels))
    before = body.op("Slice", wide, zero, first, axis)
    behind = body.op("Slice", wide, body.op("Add", first, body.extents("x", 3, 4)), channels, axis)
    body.op("Concat", before, "x", behind, axis=3, output="y")
    return helper.make_function(
        DOMAIN,
        "Place",
        ["x", "into"],
        ["y"],
        body.nodes,
        [helper.make_opsetid("", OPSET)],
        attributes=["first", "channels"],
    )


def _gather_channels_function() -> onnx.FunctionProto:
    body = _Body()
    pixels = body.extents("a", 0, 3)
    b = body.op("Expand", "b", body.concat(pixels, body.extents("b", 3, 4)))  # a neutral one is a channel of zeros
    body.op("Gather", body.op("Concat", "a", b, axis=3), "channels", axis=3, output="y")
    return helper.make_function(
        DOMAIN,
        "GatherChannels",
        ["a", "b", "channels"],
        ["y"],
        body.nodes,
        [helper.make_opsetid("", OPSET)],
        attributes=["channels_a"],
    )


def _gate_function() -> onnx.FunctionProto:
    body = _Body()
    silu, hard = (body.op("Cast", body.int_attribute(name), to=onnx.TensorProto.BOOL) for name in ("silu", "hard"))
    mean = body.op("ReduceMean", body.floats("x"), body.constant([1, 2]), keepdims=0)
    hidden = body.op("Add", body.op("MatMul", mean, "reduce"), "reduce_bias")
    activated = body.op("Where", silu, body.op("Mul", hidden, body.op("Sigmoid", hidden)), body.op("Relu", hidden))
    factor = body.op("Add", body.op("MatMul", activated, "expand"), "expand_bias")
    hard_factor = body.op("HardSigmoid", factor, alpha=1 / 6, beta=0.5)
    chosen = body.op("Where", hard, hard_factor, body.op("Sigmoid", factor))
    body.op("Unsqueeze", chosen, body.constant([1, 2]), output="factor")
    inputs = ["x", "reduce", "reduce_bias", "expand", "expand_bias"]
    integers = [helper.make_attribute(name, 0) for name in ("silu", "hard")]
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, "Gate", inputs, ["factor"], body.nodes, opset, attribute_protos=integers)


def _pool_function(op_type: str, own: str, default: Any) -> onnx.FunctionProto:
    """The standard operator `op_type` between two transpositions; `own` is the attribute that only it has."""
    body = _Body()
    defaults = {"strides": [1, 1], "pads": [0, 0, 0, 0], own: default}
    ints, integer = onnx.AttributeProto.INTS, onnx.AttributeProto.INT
    kinds = dict.fromkeys(("kernel_shape", "strides", "pads"), ints)
    kinds[own] = ints if isinstance(default, list) else integer
    x = body.op("Transpose", body.floats("x"), perm=[0, 3, 1, 2])
    pooled = body.with_reference(op_type, x, references={name: (name, kind) for name, kind in kinds.items()})
    body.op("CastLike", body.op("Transpose", pooled, perm=[0, 2, 3, 1]), "x", output="y")
    return helper.make_function(
        DOMAIN,
        op_type,
        ["x"],
        ["y"],
        body.nodes,
        [helper.make_opsetid("", OPSET)],
        attributes=["kernel_shape"],
        attribute_protos=[helper.make_attribute(name, value) for name, value in defaults.items()],
    )


def _binary_conv2d_function() -> onnx.FunctionProto:
    body = _Body()
    channels, group = body.int_attribute("channels"), body.int_attribute("group")
    t = body.op("Add", _sum_of_terms(body, _accumulators(body, channels, group)), "bias")
    t = body.op("Add", body.op("Mul", "gamma", _elastic_link(body, t, group)), t)
    _outputs(body, _activated(body, t))
    inputs = [
        "bits",
        "weight",
        "scale",
        "bias",
        "link",
        "gamma",
        "residual",
        "slope",
        "shift",
        "next_threshold",
        "gate",
        "factor",
    ]
    defaults: Sequence[tuple[str, Any]] = (
        ("group", 1),
        ("strides", [1, 1]),
        ("pads", [0, 0, 0, 0]),
        ("dilations", [1, 1]),
        ("planes", 1),
        ("bases", 1),
        ("ternary", 0),
        ("first_plane", 0),
    )
    return helper.make_function(
        DOMAIN,
        "BinaryConv2d",
        inputs,
        ["y", "next_bits"],
        body.nodes,
        [helper.make_opsetid("", OPSET)],
        attributes=["channels"],
        attribute_protos=[helper.make_attribute(name, value) for name, value in defaults],
    )


def _int8_conv2d_function() -> onnx.FunctionProto:
    """Integers as floats, exact up to 2^24."""
    body = _Body()
    zero = body.floats("zero_point")
    low = body.op("Neg", zero)
    high = body.op("Sub", body.constant([255.0], np.float32), zero)
    levels = body.op("Round", body.op("Mul", "image", "factor"))
    q = body.op("Max", body.op("Min", levels, high), low)
    ints = onnx.AttributeProto.INTS
    windows = {name: (name, ints) for name in ("strides", "pads")}
    sums = body.with_reference("Conv", q, body.floats("weight"), references=windows)
    pool = {"kernel_shape": "pool_shape", "strides": "pool_strides", "pads": "pool_pads"}
    references = {name: (caller, ints) for name, caller in pool.items()}

    def value(pooled: str) -> str:
        accumulators = body.op("Transpose", pooled, perm=[0, 2, 3, 1])
        return _activated(body, body.op("Add", body.op("Mul", accumulators, "scale"), "bias"))

    most = value(body.with_reference("MaxPool", sums, references=references))
    least = value(body.op("Neg", body.with_reference("MaxPool", body.op("Neg", sums), references=references)))
    both = body.op("Cast", body.int_attribute("pools_values"), to=onnx.TensorProto.BOOL)
    larger = body.op("Where", body.op("Greater", least, most), least, most)
    _outputs(body, body.op("Where", both, larger, most))
    inputs = ["image", "factor", "zero_point", "weight", "scale", "bias"]
    inputs += ["residual", "slope", "shift", "next_threshold"]
    defaults = {
        "strides": [1, 1],
        "pads": [0, 0, 0, 0],
        "pool_shape": [1, 1],
        "pool_strides": [1, 1],
        "pool_pads": [0, 0, 0, 0],
        "pools_values": 0,
    }
    return helper.make_function(
        DOMAIN,
        "Int8Conv2d",
        inputs,
        ["y", "next_bits"],
        body.nodes,
        [helper.make_opsetid("", OPSET)],
        attribute_protos=[helper.make_attribute(name, value) for name, value in defaults.items()],
    )


def model_local_functions() -> list[onnx.FunctionProto]:
    """Every operator of `ai.binarize` as a function, to be put into `ModelProto.functions`.

    The model must import the domains "" (opset 18) and "ai.binarize" (version 1) and have IR version 9 or
    newer, the first with default values for the attributes of a function.
    """
    return [
        _pack_function(),
        _binary_conv2d_function(),
        _activate_function("Activate"),
        _activate_function("ActivateLink", "gamma"),
        _place_function(),
        _gather_channels_function(),
        _gate_function(),
        _pool_function("MaxPool", "dilations", [1, 1]),
        _pool_function("AveragePool", "count_include_pad", 0),
        _int8_conv2d_function(),
    ]
