"""Int8Conv2d against the NumPy reference, bit for bit on every instruction set, and as a function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy_reference as reference
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy_reference import Conv
from onnx import TensorProto, helper
from op_models import THREADS, ZERO_MAP, available_isas, forced_isa, model_bytes, session_options, tensor_type

from binarize.errors import UnsupportedModelError
from binarize.exporting.functions import model_local_functions
from binarize.runtime import InferenceSession

EXPLORE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
OUTPUTS = ("y", "next_bits")
INPUTS = ["image", "factor", "zero_point", "weight", "scale", "bias", "residual", "slope", "shift", "next_threshold"]


@dataclass(frozen=True)
class Case:
    """One call: the windows of conv and pool, and all inputs by name."""

    conv: Conv
    pool_shape: tuple[int, int]
    pool: Conv
    values: dict[str, np.ndarray]
    pools_values: bool = False

    @property
    def fed(self) -> dict[str, np.ndarray]:
        return {n: a for n, a in self.values.items() if n == "image" or (n == "residual" and a.size > 1)}

    @property
    def stream(self) -> type:
        return self.values["residual"].dtype.type

    def model(self, functions: Any = (), **attributes: Any) -> bytes:
        windows = {
            "strides": self.conv.strides,
            "pads": self.conv.pads,
            "pool_shape": self.pool_shape,
            "pool_strides": self.pool.strides,
            "pool_pads": self.pool.pads,
            "pools_values": int(self.pools_values),
        }
        windows.update(attributes)
        node = helper.make_node("Int8Conv2d", INPUTS, OUTPUTS, name="stem", domain="ai.binarize", **windows)
        constants = {n: a for n, a in self.values.items() if n not in self.fed}
        kinds = {"y": tensor_type(self.values["residual"]), "next_bits": TensorProto.UINT64}
        return model_bytes([node], self.fed, constants, kinds, functions)

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        v = self.values
        names = ("scale", "bias", "slope", "shift", "next_threshold")
        residual = v["residual"] if v["residual"].size > 1 else None
        return reference.int8_conv2d(
            v["image"],
            float(v["factor"][0]),
            int(v["zero_point"][0]),
            v["weight"],
            self.conv,
            self.pool_shape,
            self.pool,
            **{n: v[n] for n in names},
            residual=residual,
            stream=self.stream,
            pools_values=self.pools_values,
        )


def make_case(
    *,
    shape: tuple[int, int, int, int] = (1, 3, 12, 11),
    out_channels: int = 20,
    kernel: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (2, 2),
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    pool_shape: tuple[int, int] = (1, 1),
    pool_strides: tuple[int, int] = (1, 1),
    pool_pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    residual: bool = False,
    stream: type = np.float32,
    planes: int = 1,
    pools_values: bool = False,
    seed: int = 0,
) -> Case:
    rng = np.random.default_rng(seed)
    conv, pool = Conv(shape[1], 1, strides, pads), Conv(1, 1, pool_strides, pool_pads)
    values = {n: rng.normal(size=out_channels).astype(np.float32) for n in INPUTS[4:] if n != "residual"}
    values["scale"] = (values["scale"] / 1000).astype(np.float32)
    if planes > 1:
        values["next_threshold"] = rng.normal(size=(planes, out_channels)).astype(np.float32)
    values["image"] = rng.normal(size=shape).astype(np.float32)
    values["factor"] = np.array([60], np.float32)
    values["zero_point"] = np.array([rng.integers(0, 256)], np.uint8)
    values["weight"] = rng.integers(-128, 128, (out_channels, shape[1], *kernel)).astype(np.int8)
    extent = [pool.extent(conv.extent(shape[2 + a], kernel[a], a), pool_shape[a], a) for a in (0, 1)]
    full = rng.normal(size=(shape[0], *extent, out_channels)).astype(stream)
    values["residual"] = full if residual and full.size > 1 else ZERO_MAP.astype(stream)
    return Case(conv, pool_shape, pool, values, pools_values)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, strides, pads = pair(1, 7), pair(1, 4), (*pair(0, 3), *pair(0, 3))
    pool_shape, pool_strides = (pair(1, 3), pair(1, 4)) if draw(st.booleans()) else ((1, 1), (1, 1))
    pool_pads = tuple(draw(st.integers(0, side - 1)) for side in pool_shape * 2)
    sums = [max(1, pool_shape[a] - pool_pads[a] - pool_pads[a + 2]) + draw(st.integers(0, 9)) for a in (0, 1)]
    least = [max(1, (sums[a] - 1) * strides[a] + kernel[a] - pads[a] - pads[a + 2]) for a in (0, 1)]
    return make_case(
        shape=(draw(st.integers(0, 2)), draw(st.integers(1, 4)), *least),
        out_channels=draw(st.sampled_from([1, 15, 16, 17, 33, 48, 64, 70])),
        kernel=kernel,
        strides=strides,
        pads=pads,
        pool_shape=pool_shape,
        pool_strides=pool_strides,
        pool_pads=pool_pads,
        residual=draw(st.booleans()),
        stream=draw(st.sampled_from([np.float32, np.float16])),
        planes=draw(st.integers(1, 3)),
        pools_values=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@EXPLORE
@given(case=cases(), threads=st.sampled_from(THREADS))
def test_equals_the_reference(case: Case, threads: int) -> None:
    expected = dict(zip(OUTPUTS, case.expected(), strict=True))
    for isa in available_isas():
        with forced_isa(isa):
            session = InferenceSession(case.model(), session_options(threads))
        for name, got in zip(OUTPUTS, session.run(list(OUTPUTS), case.fed), strict=True):
            np.testing.assert_array_equal(got, expected[name], err_msg=f"{name} on {isa}", strict=True)


RESNET = {"kernel": (7, 7), "pads": (3, 3, 3, 3), "pool_shape": (3, 3), "pool_strides": (2, 2), "pool_pads": (1,) * 4}


@pytest.mark.parametrize("pools_values", [False, True])
@pytest.mark.parametrize("threads", THREADS)
def test_a_resnets_stem(isa: str, threads: int, pools_values: bool) -> None:
    """Several strips, whose common rows are computed twice, and a batch."""
    case = make_case(shape=(2, 3, 70, 60), out_channels=64, pools_values=pools_values, **RESNET)
    session = InferenceSession(case.model(), session_options(threads))
    for got, expected in zip(session.run(list(OUTPUTS), case.fed), case.expected(), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("out_channels", [16, 70])
@pytest.mark.parametrize("width", [1, 15, 16, 17, 32, 33])
@pytest.mark.parametrize("taps", [60, 61, 64, 65])
def test_tiles_that_are_full_and_a_step_more(isa: str, taps: int, width: int, out_channels: int) -> None:
    """AMX takes sixteen steps of four taps, and sixteen pixels, at once."""
    shape, kernel = (1, 1, 2, taps + width - 1), (2, taps)
    case = make_case(shape=shape, kernel=kernel, strides=(1, 1), pads=(0, 0, 0, 0), out_channels=out_channels)
    session = InferenceSession(case.model(), session_options())
    for got, expected in zip(session.run(list(OUTPUTS), case.fed), case.expected(), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("width", [21, 64])  # of three channels: 16 steps, which one tile takes, and 48
@pytest.mark.parametrize("extreme", [-128, 127])
def test_the_largest_sums_are_exact(isa: str, extreme: int, width: int) -> None:
    """Where an instruction saturates pairs of products, as vpmaddubsw does, this would show."""
    case = make_case(shape=(1, 3, 4, width), kernel=(4, width), strides=(1, 1), pads=(0, 0, 0, 0))
    case.values["weight"][...] = extreme
    case.values["image"][...] = 1e30
    case.values["image"][0, 1, 1, 1] = np.nan
    case.values["zero_point"][0] = 0
    session = InferenceSession(case.model(), session_options())
    for got, expected in zip(session.run(list(OUTPUTS), case.fed), case.expected(), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_pool_of_values_is_one_behind_the_activation(isa: str) -> None:
    """The definition: for every slope and scale the largest value is that of the largest or of the smallest sum."""
    plain = make_case(shape=(1, 3, 20, 17), kernel=(3, 3), out_channels=32)
    pooled = make_case(
        shape=(1, 3, 20, 17), out_channels=32, pools_values=True, **(RESNET | {"kernel": (3, 3), "pads": (1,) * 4})
    )
    pooled.values.update({n: plain.values[n] for n in INPUTS if n != "residual"})
    run = InferenceSession(plain.model(), session_options()).run
    (values,) = run(["y"], plain.fed)
    expected = reference.pool(values, (3, 3), pooled.pool, mode="max")
    got, bits = InferenceSession(pooled.model(), session_options()).run(list(OUTPUTS), pooled.fed)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(bits, reference.pack(expected, pooled.values["next_threshold"]))
    assert (pooled.values["slope"] < 0).any() and (pooled.values["scale"] < 0).any()
    assert not np.array_equal(got, replace(pooled, pools_values=False).expected()[0])


@pytest.mark.parametrize("pools_values", [False, True])
@pytest.mark.parametrize("stream", [np.float32, np.float16])
def test_the_function_agrees(stream: type, pools_values: bool) -> None:
    case = make_case(shape=(2, 3, 20, 17), residual=True, stream=stream, planes=2, pools_values=pools_values, **RESNET)
    model = case.model(model_local_functions())
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    y, bits = onnxruntime.InferenceSession(model, session_options()).run(None, case.fed)
    expected, _ = case.expected()
    near = 1e-4 if stream is np.float32 else 2**-10 * np.abs(expected).max()
    np.testing.assert_allclose(y, expected, rtol=0, atol=near)
    assert reference.wrong_bits(bits, case.expected()[1], expected, case.values["next_threshold"], near) == 0


BROKEN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no factor": ({"factor": np.zeros(1, np.float32)}, {}, "factor must be positive"),
    "infinite factor": ({"factor": np.full(1, np.inf, np.float32)}, {}, "factor must be positive"),
    "two factors": ({"factor": np.ones(2, np.float32)}, {}, "factor must have the shape"),
    "weight of rank 3": ({"weight": np.ones((20, 3, 3), np.int8)}, {}, "weight must have the shape"),
    "empty weight": ({"weight": np.ones((20, 3, 0, 3), np.int8)}, {}, "weight"),
    "too many terms": ({"weight": np.ones((20, 3, 200, 200), np.int8)}, {}, "terms of a dot product"),
    "bias of another length": ({"bias": np.ones(19, np.float32)}, {}, "bias must have the shape"),
    "zero stride": ({}, {"strides": [0, 1]}, "strides"),
    "negative pad": ({}, {"pads": [0, -1, 0, 0]}, "pads"),
    "enormous pool": ({}, {"pool_shape": [2**62, 1]}, "pool_shape"),
    "a pad as large as the pool": ({}, {"pool_pads": [0, 1, 0, 0]}, "pool_pads"),
    "one pool stride": ({}, {"pool_strides": [1]}, "pool_strides"),
}


@pytest.mark.parametrize(("values", "attributes", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_nodes_are_refused(values: dict[str, Any], attributes: dict[str, Any], words: str) -> None:
    case = make_case()
    case = Case(case.conv, case.pool_shape, case.pool, case.values | values)
    with pytest.raises(UnsupportedModelError, match=f"(?s)Int8Conv2d node 'stem'.*{words}"):
        InferenceSession(case.model(**attributes), session_options())


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 4, 12, 11), "image must have the shape"), ((1, 3, 0, 11), "height"), ((1, 3, 2, 2), "fit")],
)
def test_wrong_images_fail_the_run(shape: tuple[int, ...], words: str) -> None:
    case = make_case(pool_shape=(5, 5))
    session = InferenceSession(case.model(), session_options())
    with pytest.raises(Exception, match=f"(?s)Int8Conv2d node 'stem'.*{words}"):
        session.run(None, {"image": np.zeros(shape, np.float32)})
