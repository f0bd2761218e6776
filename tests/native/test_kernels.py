"""The native kernels against the NumPy reference, bit for bit, on every instruction set and thread count.

Nothing here has a tolerance: accumulators are integers, and the float epilogue is specified down to each
rounding (fused multiply-adds, sums in a fixed order), which the reference reproduces.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy_reference as reference
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy_reference import Conv
from onnx import TensorProto, helper
from op_models import THREADS, Case, available_isas, feeds, make_case, model_bytes, run_kernel, session_options

from binarize.runtime import InferenceSession

EXPLORE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Around the 16 lanes of a block, the 32 channels of a step, the 64 of a word and the tiles of several blocks.
channel_counts = st.sampled_from([1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 128, 130])


counts = st.integers(1, 3)
several = st.fixed_dictionaries({"planes": counts, "bases": counts, "ternary": st.integers(0, 1)})
terms = st.one_of(st.just({}), several)
around = st.fixed_dictionaries({"first_plane": st.integers(0, 2), "planes_behind": st.integers(0, 2)})
map_planes = st.one_of(st.just({}), around)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any legal BinaryConv2d of small size."""
    form = draw(st.sampled_from(["dense", "dense", "grouped", "depthwise", "multiplier"]))
    if form == "dense":
        group, channels, out_channels = 1, draw(channel_counts), draw(channel_counts)
    elif form == "grouped":
        group = draw(st.integers(2, 5))
        channels, out_channels = (group * draw(channel_counts) for _ in range(2))
    else:
        group = channels = draw(channel_counts)
        out_channels = channels * (1 if form == "depthwise" else draw(st.integers(2, 3)))
    extent, step, pad = st.integers(1, 5), st.integers(1, 3), st.integers(0, 3)
    kernel, strides = draw(st.tuples(extent, extent)), draw(st.tuples(step, step))
    dilations = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pads = draw(st.tuples(pad, pad, pad, pad))
    conv = Conv(channels, group, strides, pads, dilations)
    smallest = [max(1, dilations[axis] * (kernel[axis] - 1) + 1 - pads[axis] - pads[axis + 2]) for axis in (0, 1)]
    size = tuple(low + draw(st.integers(0, 9)) for low in smallest)
    assert conv.extent(size[0], kernel[0], 0) > 0
    outputs: Any = draw(st.sampled_from([("y", "next_bits"), ("y",), ("next_bits",)]))
    flag = st.booleans()
    return make_case(
        channels=channels,
        out_channels=out_channels,
        kernel=kernel,
        size=(size[0], size[1]),
        batch=draw(st.integers(1, 2)),
        group=group,
        strides=strides,
        pads=pads,
        dilations=dilations,
        link=draw(flag),
        residual=draw(flag),
        slope=draw(flag),
        shift=draw(flag),
        exact=draw(flag),
        scalar_parameters=draw(flag),
        **draw(terms),
        **draw(map_planes),
        next_planes=draw(st.sampled_from([1, 1, 2, 3])),
        gate=draw(flag) and draw(flag),
        factor=draw(st.sampled_from(["", "", "all", "image"])),
        outputs=outputs,
        stream=draw(st.sampled_from([np.float32, np.float16])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def assert_equals_reference(case: Case, threads: Sequence[int] = (1,)) -> None:
    """Every instruction set gives exactly the reference's values, on each of these numbers of threads."""
    expected = dict(zip(("y", "next_bits"), case.expected(), strict=True))
    for isa, count in itertools.product(available_isas(), threads):
        for name, got in run_kernel(case, isa, count).items():
            what = f"{name} on {isa}, {count} threads"
            np.testing.assert_array_equal(got, expected[name], err_msg=what, strict=True)


@EXPLORE
@given(case=cases(), threads=st.sampled_from(THREADS))
def test_conv_equals_the_reference(case: Case, threads: int) -> None:
    assert_equals_reference(case, [threads])


@pytest.mark.parametrize("kernel", [(3, 3), (7, 3), (1, 1), (5, 5)])
@pytest.mark.parametrize("channels", [32, 64, 130, 257])
@pytest.mark.parametrize("inputs", [-1, 1])
@pytest.mark.parametrize("weights", [-1, 1])
def test_no_counter_overflows_where_all_agree_or_differ(
    kernel: tuple[int, int], channels: int, inputs: int, weights: int
) -> None:
    case = make_case(channels=channels, out_channels=160, kernel=kernel, size=(5, 9), exact=True)
    case.values["bits"] = reference.pack_bits(np.full((1, 5, 9, channels), inputs > 0))
    case.values["weight"] = reference.pack_weight(np.full((160, channels, *kernel), weights), 1)
    assert_equals_reference(case)


SHAPES = {
    "resnet 3x3": {"channels": 64, "out_channels": 64, "size": (14, 14)},
    "wide 1x1": {"channels": 256, "out_channels": 512, "kernel": (1, 1), "pads": (0,) * 4, "size": (7, 7)},
    "expand": {"channels": 64, "out_channels": 256, "kernel": (1, 1), "pads": (0,) * 4, "size": (9, 9)},
    "squeeze": {"channels": 512, "out_channels": 128, "kernel": (1, 1), "pads": (0,) * 4, "size": (5, 5)},
    "uneven squeeze": {"channels": 160, "out_channels": 48},
    "strided 3x3": {"channels": 128, "out_channels": 256, "strides": (2, 2), "size": (14, 14)},
    "strided 1x1": {
        "channels": 64,
        "out_channels": 128,
        "kernel": (1, 1),
        "strides": (2, 2),
        "pads": (0,) * 4,
    },
    "one tap of two inside": {
        "channels": 64,
        "out_channels": 96,
        "kernel": (2, 1),
        "pads": (1, 0, 0, 0),
        "size": (6, 6),
    },
    "link shared by tiles out of step": {"channels": 48, "out_channels": 200, "strides": (2, 2), "size": (9, 31)},
    "link too wide to share": {"channels": 1040, "out_channels": 2090, "strides": (1, 2), "size": (2, 9)},
    "stem 7x7": {"channels": 3, "out_channels": 64, "kernel": (7, 7), "strides": (2, 2), "pads": (3,) * 4},
    "unpadded": {"channels": 70, "out_channels": 40, "kernel": (5, 5), "pads": (0,) * 4, "size": (9, 9)},
    "more padding than map": {"channels": 33, "out_channels": 20, "pads": (6, 5, 4, 7), "size": (2, 1)},
    "dilated": {"channels": 64, "out_channels": 64, "dilations": (2, 3), "pads": (2, 3, 2, 3)},
    "groups of 32": {"channels": 128, "out_channels": 64, "group": 4},
    "resnext": {"channels": 128, "out_channels": 128, "group": 32},
    "three by three bases": {"channels": 96, "out_channels": 80, "planes": 3, "bases": 3, "size": (9, 9)},
    "bases of a matrix product": {
        "channels": 64,
        "out_channels": 64,
        "kernel": (1, 1),
        "pads": (0,) * 4,
        "bases": 2,
        "batch": 2,
        "gate": True,
    },
    "ternary": {"channels": 70, "out_channels": 64, "ternary": 1, "size": (9, 9)},
    "ternary of whole words by group": {"channels": 128, "out_channels": 64, "group": 2, "ternary": 1, "planes": 2},
    "ternary strided 1x1": {
        "channels": 128,
        "out_channels": 256,
        "kernel": (1, 1),
        "strides": (2, 2),
        "pads": (0,) * 4,
        "size": (9, 14),
        "ternary": 1,
    },
    "ternary depthwise": {"channels": 70, "out_channels": 70, "group": 70, "ternary": 1, "bases": 2},
    "gated depthwise": {"channels": 70, "out_channels": 70, "group": 70, "batch": 2, "gate": True, "factor": "image"},
    "depthwise of 9 words": {"channels": 576, "out_channels": 576, "group": 576},
    "depthwise of 18 words": {"channels": 1100, "out_channels": 1100, "group": 1100, "size": (3, 7)},
    "depthwise of one word on a long row": {"channels": 50, "out_channels": 50, "group": 50, "size": (2, 75)},
    "depthwise strided": {
        "channels": 130,
        "out_channels": 130,
        "group": 130,
        "strides": (2, 2),
        "size": (9, 9),
    },
    "depthwise of 17x17 taps": {
        "channels": 70,
        "out_channels": 70,
        "group": 70,
        "kernel": (17, 17),
        "pads": (8,) * 4,
        "size": (12, 20),
    },
    "depthwise of 33x33 taps": {  # more than ten bit planes hold
        "channels": 70,
        "out_channels": 70,
        "group": 70,
        "kernel": (33, 33),
        "pads": (16,) * 4,
        "size": (10, 35),
    },
    "depthwise 5x5 dilated": {
        "channels": 64,
        "out_channels": 64,
        "group": 64,
        "kernel": (5, 5),
        "dilations": (2, 1),
        "pads": (4, 2, 4, 2),
    },
    "one pixel": {"channels": 64, "out_channels": 10, "kernel": (1, 1), "pads": (0,) * 4, "size": (1, 1)},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shapes_of_real_nets(shape: dict[str, Any]) -> None:
    assert_equals_reference(make_case(**shape, link=True, residual=True, slope=True, shift=True, seed=3), THREADS)


def test_accumulators_are_exact_at_both_ends(isa: str) -> None:
    """All signs equal gives +K, all opposite gives -K, with K the terms inside the map."""
    case = make_case(channels=2048, out_channels=32, size=(3, 3), exact=True, outputs=("y",))
    every_bit = np.full_like(case.values["bits"], np.uint64(2**64 - 1))
    for weight_bits, sign in ((np.uint64(2**64 - 1), 1), (np.uint64(0), -1)):
        weight = np.full_like(case.values["weight"], weight_bits)
        got = run_kernel(Case(case.conv, {**case.values, "bits": every_bit, "weight": weight}, ("y",)), isa)["y"]
        assert got[0, 1, 1, 0] == sign * 9 * 2048
        assert got[0, 0, 0, 31] == sign * 4 * 2048


def test_stray_bits_past_the_last_channel_change_nothing() -> None:
    for channels, group in ((5, 1), (40, 1), (70, 70), (100, 4)):
        case = make_case(channels=channels, out_channels=channels, group=group, residual=True)
        dirty = dict(case.values)
        used = (np.uint64(1) << np.uint64(channels % 64)) - np.uint64(1)
        for name in ("bits", "weight"):
            dirty[name] = dirty[name].copy()
            dirty[name][..., -1] |= ~used
        expected = case.expected()
        for isa in available_isas():
            got = run_kernel(Case(case.conv, dirty), isa)
            np.testing.assert_array_equal(got["y"], expected[0])
            np.testing.assert_array_equal(got["next_bits"], expected[1])


def test_next_bits_leave_unused_bits_zero() -> None:
    case = make_case(channels=64, out_channels=17, outputs=("next_bits",))
    case.values["next_threshold"][...] = -np.inf
    for isa in available_isas():
        assert np.all(run_kernel(case, isa)["next_bits"] == np.uint64(2**17 - 1))


def test_empty_batch() -> None:
    case = make_case(channels=64, out_channels=70, link=True, residual=True)
    empty = {n: a[:0] if n in feeds(case) else a for n, a in case.values.items()}
    got = run_kernel(Case(case.conv, empty))
    assert got["y"].shape == (0, 6, 7, 70)
    assert got["next_bits"].shape == (0, 6, 7, 2)


def test_special_values_reach_the_output(isa: str) -> None:
    """NaN and infinities of the residual pass through; NaN packs to 0, negative zero counts as zero."""
    case = make_case(channels=64, out_channels=16, kernel=(1, 1), pads=(0,) * 4, size=(1, 4), residual=True)
    special = np.array([np.nan, np.inf, -np.inf, 0.0], dtype=np.float32)
    case.values["residual"][...] = special[None, None, :, None]
    case.values["scale"] = case.values["bias"] = np.zeros(1, dtype=np.float32)
    case.values["next_threshold"] = np.array([-0.0], dtype=np.float32)
    got = run_kernel(case, isa)
    np.testing.assert_array_equal(got["y"][0, 0, :, 0], special)
    np.testing.assert_array_equal(got["next_bits"].ravel(), np.array([0, 0xFFFF, 0, 0], dtype=np.uint64))


@pytest.mark.parametrize("value", [3e38, -3e38, np.inf, np.nan, 1e-45])
@pytest.mark.parametrize("name", ["gate", "factor"])
def test_extreme_gates_and_factors_act_as_specified(isa: str, name: str, value: float) -> None:
    """Accumulators of 0 and of K, beside scales that bring the product back into range or out of it."""
    case = make_case(channels=64, out_channels=48, kernel=(1, 1), pads=(0,) * 4, size=(1, 3), gate=True, factor="all")
    values = case.values
    values["bits"][...] = np.array([0xFFFF_FFFF, 2**64 - 1, 0], dtype=np.uint64).reshape(1, 1, 3, 1)
    values["weight"][...] = np.uint64(2**64 - 1)  # accumulators of 0, 64 and -64
    values["scale"] = np.tile(np.array([0.0, 1.0, 1e-38, 1e-30], dtype=np.float32), 12)
    values["gate"], values["factor"] = (np.ones_like(values[n]) for n in ("gate", "factor"))
    values[name][...] = value
    with np.errstate(over="ignore", invalid="ignore"):
        expected = case.expected()
    got = run_kernel(case, isa)
    np.testing.assert_array_equal(got["y"], expected[0])
    np.testing.assert_array_equal(got["next_bits"], expected[1])


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("out_channels", [16, 64, 128])
def test_a_link_of_negative_zeros_is_one(isa: str, out_channels: int, strides: tuple[int, int]) -> None:
    """The sum of a link begins with its first term, not with 0: shown where all else is -0 too."""
    case = make_case(channels=64, out_channels=out_channels, size=(4, 4), strides=strides, link=True)
    case.values["link"][...] = -0.0
    case.values["gamma"][...] = 1.0
    case.values["bits"][...], case.values["weight"][...] = 0, np.uint64(2**64 - 1)  # accumulators below 0
    case.values["scale"] = np.zeros(1, dtype=np.float32)
    case.values["bias"] = np.array([-0.0], dtype=np.float32)
    got, (expected, _) = run_kernel(case, isa)["y"], case.expected()
    assert np.all(np.signbit(expected))
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


@pytest.mark.parametrize("slope", [-3.0, -0.25, -0.0, 0.0, 0.25, 1.0, 1.5])
def test_a_slope_of_any_sign_leaves_special_values_as_specified(isa: str, slope: float) -> None:
    """`t > 0 ? t : slope * t` to the sign of a zero; where all slopes are at most 1 kernels take a shorter way."""
    case = make_case(channels=64, out_channels=80, kernel=(1, 1), pads=(0,) * 4, size=(2, 4), residual=True)
    special = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38], dtype=np.float32)
    case.values["residual"][...] = special.reshape(1, 2, 4, 1)
    case.values["scale"] = np.zeros(1, dtype=np.float32)
    case.values["bias"] = np.array([-0.0], dtype=np.float32)
    case.values["slope"] = np.full(80, slope, dtype=np.float32)
    got, (expected, _) = run_kernel(case, isa)["y"], case.expected()
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


@pytest.mark.parametrize("slope", [None, 0.25, -0.25])
@pytest.mark.parametrize("shape", ["resnet 3x3", "wide 1x1", "expand", "strided 1x1"])
def test_bits_alone_are_those_of_the_values(isa: str, shape: str, slope: float | None) -> None:
    """Without a link or residual kernels compare accumulators: with scales of any sign, and thresholds met exactly."""
    case = make_case(
        **SHAPES[shape], outputs=("next_bits",), shift=True, slope=slope is not None, next_planes=2, seed=9
    )
    rng, (y, _) = np.random.default_rng(9), case.expected()
    values = case.values
    values["scale"][:3] = 0.0, -0.0, np.float32(1e-38)
    values["bias"][3:6] = -0.0
    if slope is not None:
        values["slope"] = (slope * rng.random(y.shape[-1])).astype(np.float32)
    y, _ = case.expected()
    met = y.reshape(-1, y.shape[-1])[rng.integers(0, y[..., 0].size, y.shape[-1]), np.arange(y.shape[-1])]
    values["next_threshold"][0] = met
    values["next_threshold"][1, :4] = np.inf, -np.inf, np.nan, 0.0
    np.testing.assert_array_equal(run_kernel(case, isa)["next_bits"], case.expected()[1])


SEVERAL_PLANES = {
    "1x1": {"channels": 256, "out_channels": 64, "kernel": (1, 1), "pads": (0,) * 4},
    "strided 1x1": {"channels": 64, "out_channels": 128, "kernel": (1, 1), "pads": (0,) * 4, "strides": (2, 2)},
    "3x3": {"channels": 64, "out_channels": 64},
    "unpadded 3x3": {"channels": 70, "out_channels": 33, "pads": (0,) * 4},
    "depthwise": {"channels": 96, "out_channels": 96, "group": 96},
    "unpadded depthwise": {"channels": 130, "out_channels": 130, "group": 130, "pads": (0,) * 4},
    "ternary": {"channels": 64, "out_channels": 48, "planes": 2, "ternary": 1},
}


@pytest.mark.parametrize("shape", SEVERAL_PLANES)
def test_a_conv_reads_its_planes_of_a_map_and_makes_several(shape: str) -> None:
    """Each consumer of a map has a plane of bits, with its own thresholds."""
    case = make_case(
        **SEVERAL_PLANES[shape], size=(9, 17), batch=2, first_plane=1, planes_behind=1, next_planes=2, link=True, seed=6
    )
    assert_equals_reference(case, threads=(1, 2))


@pytest.mark.parametrize(
    "shape",
    ["expand", "squeeze", "strided 3x3", "depthwise strided", "uneven squeeze", "link shared by tiles out of step"],
)
def test_float16_stream(shape: str) -> None:
    """Arithmetic is float32; y is rounded once, and the next bits are those of what was stored."""
    case = make_case(**SHAPES[shape], link=True, residual=True, slope=True, shift=True, stream=np.float16, seed=4)
    assert_equals_reference(case)
    assert_equals_reference(replace(case, outputs=("next_bits",)))


def test_float16_extremes_are_rounded_alike(isa: str) -> None:
    """Subnormals, ties, overflow to infinity and NaN: the same float16 as NumPy's."""
    case = make_case(
        channels=64,
        out_channels=64,
        kernel=(1, 1),
        pads=(0,) * 4,
        size=(8, 8),
        link=True,
        outputs=("y",),
        stream=np.float16,
    )
    magnitudes = np.geomspace(1e-9, 1e6, case.values["link"].size).reshape(case.values["link"].shape)
    case.values["gamma"] = np.array([1.0], dtype=np.float32)
    case.values["scale"] = np.zeros(1, dtype=np.float32)
    for sign in (1, -1):
        for factor in (1.0, 3.7):
            case.values["link"][...] = np.clip(sign * magnitudes, -6e4, 6e4)
            case.values["gamma"][...] = factor
            assert_equals_reference(case)
            case.values["bias"] = (sign * factor * magnitudes[0, 0, 0]).astype(np.float32)
            assert_equals_reference(case)
    case.values["link"][0, :, 0] = np.array([np.nan, np.inf, -np.inf, 65504, -65504, 6e-8, 3e-8, 0])[:, None]
    np.testing.assert_array_equal(run_kernel(case, isa)["y"], case.expected()[0])


@pytest.mark.parametrize("ternary", [0, 1])
def test_more_inputs_than_sixteen_bits_count(ternary: int) -> None:
    """Kernels that count by table hold mismatches as uint16; here every one of 65,600 inputs differs."""
    case = make_case(channels=65600, out_channels=40, kernel=(1, 1), pads=(0,) * 4, size=(1, 2), ternary=ternary)
    case.values["bits"][...] = 0
    case.values["weight"][...] = np.iinfo(np.uint64).max
    assert_equals_reference(case)


def pack_session(x: np.ndarray, threshold: np.ndarray, constant: bool, threads: int = 1) -> InferenceSession:
    node = helper.make_node("Pack", ["x", "threshold"], ["bits"], name="pack", domain="ai.binarize")
    inputs = {"x": x} if constant else {"x": x, "threshold": threshold}
    model = model_bytes([node], inputs, {"threshold": threshold} if constant else {}, {"bits": TensorProto.UINT64})
    return InferenceSession(model, session_options(threads))


@EXPLORE
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 5), st.integers(1, 5), channel_counts),
    per_channel=st.booleans(),
    constant=st.booleans(),
    stream=st.sampled_from([np.float32, np.float16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_pack_equals_the_reference(
    shape: tuple[int, ...], per_channel: bool, constant: bool, stream: type, seed: int
) -> None:
    from op_models import forced_isa

    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, shape).astype(stream)  # many values equal to their threshold
    x[rng.random(shape) < 0.1] = np.nan
    x[rng.random(shape) < 0.1] = -0.0
    threshold = rng.integers(-1, 2, shape[3] if per_channel else 1).astype(np.float32)
    for isa in available_isas():
        with forced_isa(isa):
            session = pack_session(x, threshold, constant)
        (got,) = session.run(None, {"x": x} if constant else {"x": x, "threshold": threshold})
        np.testing.assert_array_equal(got, reference.pack(x, threshold), err_msg=isa, strict=True)


@pytest.mark.parametrize("threads", THREADS)
def test_pack_of_a_large_map_on_several_threads(isa: str, threads: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 40, 40, 200)).astype(np.float32)
    threshold = np.zeros(1, dtype=np.float32)
    (got,) = pack_session(x, threshold, True, threads).run(None, {"x": x})
    np.testing.assert_array_equal(got, reference.pack(x, threshold))
