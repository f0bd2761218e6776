"""Activate and the pools against the NumPy reference, bit for bit on every instruction set, and as functions."""

from __future__ import annotations

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
from op_models import THREADS, available_isas, forced_isa, model_bytes, session_options, tensor_type
from test_kernels import channel_counts

from binarize.exporting.functions import model_local_functions
from binarize.runtime import InferenceSession

EXPLORE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
INPUTS = ["x", "gate", "scale", "bias", "residual", "slope", "shift", "next_threshold"]
KINDS = {"y": TensorProto.FLOAT, "next_bits": TensorProto.UINT64}
NEUTRAL = {"gate": np.ones((1, 1, 1, 1), np.float32), "residual": np.zeros((1, 1, 1, 1), np.float32)}


STREAMS = {"float32": (np.float32, np.float32), "float16": (np.float16, np.float16), "narrow": (np.float32, np.float16)}
"""Element types of x and of residual and y."""


def activate_case(
    shape: tuple[int, ...],
    seed: int,
    gate: bool,
    residual: bool,
    scalar: bool,
    stream: str = "float32",
    planes: int = 1,
    wider: int = 0,
    link: int = 0,
) -> dict[str, np.ndarray]:
    """All inputs of an Activate by name; what is not wanted is neutral. `x` has `wider` channels that nobody wants.

    With channels of a `link` they are those of an ActivateLink.
    """
    own, kept = STREAMS[stream]
    rng = np.random.default_rng(seed)
    channels = 1 if scalar else shape[3]
    values = {n: rng.normal(size=channels).astype(np.float32) for n in ("scale", "bias", "slope", "shift")}
    threshold = channels if planes == 1 else (planes, shape[3])
    values["next_threshold"] = rng.normal(size=threshold).astype(np.float32)
    x = values["x"] = rng.normal(size=(*shape[:3], shape[3] + wider)).astype(np.float32)
    x[rng.random(x.shape) < 0.05] = np.nan
    x[rng.random(x.shape) < 0.05] = -0.0
    values["gate"] = rng.random((shape[0], 1, 1, shape[3])).astype(np.float32) if gate else NEUTRAL["gate"]
    values["residual"] = rng.normal(size=shape).astype(np.float32) if residual else NEUTRAL["residual"]
    if kept is np.float16:
        values["residual"] = values["residual"].astype(kept)
        values["x"] = values["x"].astype(own)
    if link:
        values["gamma"] = rng.normal(size=link).astype(np.float32)
    return values


def activate_model(
    values: dict[str, np.ndarray], outputs: tuple[str, ...], functions: Any = (), wider: int = 0
) -> bytes:
    names = [n if n in outputs else "" for n in KINDS]
    channels = values["x"].shape[3] - wider
    op_type, inputs = ("ActivateLink", [*INPUTS, "gamma"]) if "gamma" in values else ("Activate", INPUTS)
    node = helper.make_node(op_type, inputs, names, name="act", domain="ai.binarize", channels=channels)
    data = fed(values)
    constants = {n: a for n, a in values.items() if n not in data}
    kinds = KINDS | {"y": tensor_type(values["residual"])}
    return model_bytes([node], data, constants, {n: kinds[n] for n in outputs}, functions)


def is_neutral(values: dict[str, np.ndarray], name: str) -> bool:
    return name in NEUTRAL and values[name].shape == (1, 1, 1, 1) and values[name] == NEUTRAL[name]


def fed(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: a for n, a in values.items() if n == "x" or (n in NEUTRAL and not is_neutral(values, n))}


def expected_activation(values: dict[str, np.ndarray], wider: int = 0) -> dict[str, np.ndarray]:
    x = values["x"][..., : values["x"].shape[3] - wider]
    optional = {n: values[n] for n in NEUTRAL if not is_neutral(values, n)}
    parameters = {n: values.get(n) for n in ("scale", "bias", "slope", "shift", "next_threshold", "gamma")}
    stream = values["residual"].dtype.type
    return dict(zip(KINDS, reference.activate(x, **parameters, **optional, stream=stream), strict=True))


@EXPLORE
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 4), channel_counts),
    outputs=st.sampled_from([("y", "next_bits"), ("y",), ("next_bits",)]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    stream=st.sampled_from(sorted(STREAMS)),
    planes=st.integers(1, 3),
    wider=st.sampled_from([0, 1, 16, 37]),
    threads=st.sampled_from(THREADS),
    seed=st.integers(0, 2**32 - 1),
)
def test_activate_equals_the_reference(
    shape: Any, outputs: tuple[str, ...], flags: Any, stream: str, planes: int, wider: int, threads: int, seed: int
) -> None:
    values = activate_case(shape, seed, *flags, stream, planes, wider)
    expected = expected_activation(values, wider)
    for isa in available_isas():
        with forced_isa(isa):
            session = InferenceSession(activate_model(values, outputs, wider=wider), session_options(threads))
        for name, got in zip(outputs, session.run(list(outputs), fed(values)), strict=True):
            np.testing.assert_array_equal(got, expected[name], err_msg=f"{name} on {isa}", strict=True)


@EXPLORE
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 6), st.integers(16, 200)),
    link=st.sampled_from([16, 32, 64, 128]),
    outputs=st.sampled_from([("y", "next_bits"), ("y",), ("next_bits",)]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    stream=st.sampled_from(sorted(STREAMS)),
    planes=st.integers(1, 3),
    wider=st.sampled_from([0, 1, 16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_activate_link_equals_the_reference(
    shape: Any, link: int, outputs: tuple[str, ...], flags: Any, stream: str, planes: int, wider: int, seed: int
) -> None:
    values = activate_case(shape, seed, *flags, stream, planes, wider, min(link, shape[3] // 16 * 16))
    expected = expected_activation(values, wider)
    for isa in available_isas():
        with forced_isa(isa):
            session = InferenceSession(activate_model(values, outputs, wider=wider), session_options())
        for name, got in zip(outputs, session.run(list(outputs), fed(values)), strict=True):
            np.testing.assert_array_equal(got, expected[name], err_msg=f"{name} on {isa}", strict=True)


def test_a_link_keeps_the_sign_of_its_zeros(isa: str) -> None:
    """Also where the channels that are summed end inside a block."""
    values = activate_case((1, 2, 2, 40), 0, gate=False, residual=False, scalar=False, link=32)
    values["x"] = np.full_like(values["x"], -0.0)
    values |= {n: np.full(40, v, np.float32) for n, v in {"scale": 1, "bias": -0.0, "slope": 1, "shift": -0.0}.items()}
    values["gamma"] = np.ones(32, np.float32)
    (y,) = InferenceSession(activate_model(values, ("y",)), session_options()).run(None, fed(values))
    assert expected_activation(values)["y"].tobytes() == y.tobytes()
    assert np.signbit(y).all()


@pytest.mark.parametrize("link", [0, 48])
@pytest.mark.parametrize("threads", THREADS)
def test_activate_of_a_large_map_on_several_threads(isa: str, threads: int, link: int) -> None:
    """More than one task per image, and a gate of its own for each image."""
    values = activate_case((2, 30, 31, 70), 1, gate=True, residual=True, scalar=False, wider=11, link=link)
    session = InferenceSession(activate_model(values, ("y", "next_bits"), wider=11), session_options(threads))
    for name, got in zip(KINDS, session.run(None, fed(values)), strict=True):
        np.testing.assert_array_equal(got, expected_activation(values, 11)[name], err_msg=name)


@pytest.mark.parametrize(("planes", "wider", "link"), [(1, 0, 0), (2, 0, 0), (1, 9, 0), (1, 0, 32), (2, 9, 64)])
@pytest.mark.parametrize("stream", STREAMS)
def test_activate_function_agrees(stream: str, planes: int, wider: int, link: int) -> None:
    flags = {"gate": True, "residual": True, "scalar": False}
    values = activate_case((2, 3, 5, 70), 2, **flags, stream=stream, planes=planes, wider=wider, link=link)
    values["x"] = np.nan_to_num(values["x"])
    model = activate_model(values, ("y", "next_bits"), model_local_functions(), wider)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    y, bits = onnxruntime.InferenceSession(model, session_options()).run(None, fed(values))
    expected = expected_activation(values, wider)
    near = 1e-5 if stream == "float32" else 2**-10 * np.abs(expected["y"]).max()
    np.testing.assert_allclose(y, expected["y"], rtol=0, atol=near)
    values.pop("gamma", None)
    summed = expected_activation(values, wider)["y"]
    assert reference.wrong_bits(bits, expected["next_bits"], summed, values["next_threshold"], near) == 0


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"scale": np.zeros(3, np.float32)}, "input scale must have the shape"),
        ({"x": np.zeros((1, 2, 2, 4), np.float32)}, "input x must have the shape"),
        ({"residual": np.zeros((1, 2, 2, 4), np.float32)}, "input residual must have the shape"),
        ({"gate": np.zeros((1, 2, 2, 5), np.float32)}, "input gate must have the shape"),
    ],
)
def test_activate_refuses_shapes_that_do_not_fit(broken: dict[str, np.ndarray], message: str) -> None:
    values = activate_case((1, 2, 2, 5), 0, gate=True, residual=True, scalar=False)
    model = onnx.load_from_string(activate_model({**values, **broken}, ("y",)))
    model.graph.node[0].attribute[0].i = 5
    with pytest.raises(Exception, match=rf"Activate node .act..*{message}"):
        InferenceSession(model.SerializeToString(), session_options()).run(None, fed({**values, **broken}))


@pytest.mark.parametrize("gamma", [np.zeros(0), np.zeros(1), np.zeros(20), np.zeros(48), np.zeros((16, 1))])
def test_activate_link_refuses_other_channels_than_multiples_of_16(gamma: np.ndarray) -> None:
    values = activate_case((1, 2, 2, 40), 0, gate=False, residual=False, scalar=False)
    model = activate_model({**values, "gamma": gamma.astype(np.float32)}, ("y",))
    with pytest.raises(Exception, match=r"ActivateLink node .act..*input gamma must"):
        InferenceSession(model, session_options())


def place_model(x: np.ndarray, into: np.ndarray | None, first: int, channels: int, functions: Any = ()) -> bytes:
    node = helper.make_node(
        "Place", ["x", "into"], ["y"], name="place", domain="ai.binarize", first=first, channels=channels
    )
    constants = {"into": np.zeros((1, 1, 1, 1), x.dtype)} if into is None else {}
    return model_bytes([node], placed(x, into), constants, {"y": tensor_type(x)}, functions)


def placed(x: np.ndarray, into: np.ndarray | None) -> dict[str, np.ndarray]:
    return {"x": x} if into is None else {"x": x, "into": into}


@EXPLORE
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 40), st.integers(0, 70)),
    around=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    new=st.booleans(),
    half=st.booleans(),
    threads=st.sampled_from(THREADS),
    seed=st.integers(0, 2**32 - 1),
)
def test_place_equals_the_reference_and_its_function(
    shape: Any, around: tuple[int, int], new: bool, half: bool, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    first, channels = around[0], max(1, sum(around) + shape[3])
    x, into = (
        rng.normal(size=(*shape[:3], c)).astype(np.float16 if half else np.float32) for c in (shape[3], channels)
    )
    wide = None if new else into
    expected = reference.place(x, wide, first, channels)
    session = InferenceSession(place_model(x, wide, first, channels), session_options(threads))
    np.testing.assert_array_equal(session.run(None, placed(x, wide))[0], expected, strict=True)
    model = place_model(x, wide, first, channels, model_local_functions())
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    stock = onnxruntime.InferenceSession(model, session_options(threads))
    np.testing.assert_array_equal(stock.run(None, placed(x, wide))[0], expected, strict=True)


def gather_model(
    a: np.ndarray, b: np.ndarray | None, channels: Any, of_a: int | None = None, functions: Any = ()
) -> bytes:
    node = helper.make_node(
        "GatherChannels",
        ["a", "b", "channels"],
        ["y"],
        name="gather",
        domain="ai.binarize",
        channels_a=a.shape[3] if of_a is None else of_a,
    )
    constants = {"channels": np.array(channels, dtype=np.int64)}
    constants |= {"b": np.zeros((1, 1, 1, 1), a.dtype)} if b is None else {}
    return model_bytes([node], gathered(a, b), constants, {"y": tensor_type(a)}, functions)


def gathered(a: np.ndarray, b: np.ndarray | None) -> dict[str, np.ndarray]:
    return {"a": a} if b is None else {"a": a, "b": b}


@st.composite
def channel_orders(draw: st.DrawFn, total: int) -> list[int]:
    """Shuffles of any number of groups, parts of them, runs, and any channels at all."""
    form = draw(st.sampled_from(["shuffle", "shuffle", "runs", "any"]))
    if form == "any":
        return draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=40))
    if form == "runs":
        runs = draw(st.lists(st.tuples(st.integers(0, total - 1), st.integers(1, 20)), min_size=1, max_size=5))
        return [channel for first, size in runs for channel in range(first, min(first + size, total))]
    groups = draw(st.sampled_from([g for g in range(1, total + 1) if total % g == 0]))
    order = np.arange(total).reshape(groups, -1).T.flatten().tolist()
    first = draw(st.integers(0, total - 1))
    return order[first : draw(st.integers(first + 1, total))]


@EXPLORE
@given(
    pixels=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 40)),
    sizes=st.tuples(st.integers(1, 70), st.integers(0, 70)),
    half=st.booleans(),
    threads=st.sampled_from(THREADS),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_gathered_channels_equal_the_reference_and_the_function(
    pixels: Any, sizes: tuple[int, int], half: bool, threads: int, seed: int, data: st.DataObject
) -> None:
    rng, kind = np.random.default_rng(seed), np.float16 if half else np.float32
    a, wide = (rng.normal(size=(*pixels, size)).astype(kind) for size in sizes)
    b = wide if sizes[1] > 0 else None
    channels = data.draw(channel_orders(sum(sizes)))
    expected = reference.gather_channels(a, b, channels)
    session = InferenceSession(gather_model(a, b, channels), session_options(threads))
    np.testing.assert_array_equal(session.run(None, gathered(a, b))[0], expected, strict=True)
    model = gather_model(a, b, channels, functions=model_local_functions())
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    stock = onnxruntime.InferenceSession(model, session_options(threads))
    np.testing.assert_array_equal(stock.run(None, gathered(a, b))[0], expected, strict=True)


@pytest.mark.parametrize(
    ("a", "b", "channels", "of_a", "message"),
    [
        ((1, 2, 2, 5), None, [0, 5], 5, "a value of input channels"),
        ((1, 2, 2, 5), None, [-1, 2], 5, "a value of input channels"),
        ((1, 2, 2, 5), (1, 2, 2, 8), [2**62], 5, "a value of input channels"),
        ((1, 2, 2, 5), None, [], 5, "input channels"),
        ((1, 2, 2, 5), None, [[0, 1]], 5, "input channels must have the shape"),
        ((1, 2, 2, 5), None, [0], 0, "attribute channels_a"),
        ((1, 2, 2, 5), None, [0], 4, "input a must have the shape"),
        ((1, 2, 2, 5), (1, 2, 2, 3), [0, 8], 5, "input b must be like a"),
        ((1, 2, 2, 5), (1, 2, 3, 8), [0, 8], 5, "input b must be like a"),
        ((1, 2, 2, 5), (2, 2, 2, 8), [0, 8], 5, "input b must be like a"),
    ],
)
def test_gathering_refuses_what_does_not_fit(a: Any, b: Any, channels: Any, of_a: int, message: str) -> None:
    maps = np.zeros(a, np.float32), None if b is None else np.zeros(b, np.float32)
    with pytest.raises(Exception, match=rf"GatherChannels node .gather..*{message}"):
        InferenceSession(gather_model(*maps, channels, of_a), session_options()).run(None, gathered(*maps))


def test_channels_to_gather_must_be_constant() -> None:
    a = np.zeros((1, 2, 2, 5), np.float32)
    model = onnx.load_from_string(gather_model(a, None, [0]))
    del model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info("channels", onnx.TensorProto.INT64, [1]))
    with pytest.raises(Exception, match=r"GatherChannels node .gather..*channels must be a non-empty constant"):
        InferenceSession(model.SerializeToString(), session_options())


@pytest.mark.parametrize(
    ("x", "into", "first", "channels", "message"),
    [
        ((1, 2, 2, 5), (1, 2, 2, 8), 4, 8, "input x must have the shape"),
        ((1, 2, 2, 5), (1, 2, 3, 8), 0, 8, "input into must have the shape"),
        ((1, 2, 2, 5), (1, 2, 2, 9), 0, 8, "input into must have the shape"),
        ((1, 2, 2, 5), (1, 2, 2, 8), 9, 8, "attribute first"),
        ((1, 2, 2, 5), (1, 2, 2, 8), 0, 0, "attribute channels"),
    ],
)
def test_place_refuses_what_does_not_fit(x: Any, into: Any, first: int, channels: int, message: str) -> None:
    maps = np.zeros(x, np.float32), np.zeros(into, np.float32)
    with pytest.raises(Exception, match=rf"Place node .place..*{message}"):
        InferenceSession(place_model(*maps, first, channels), session_options()).run(None, placed(*maps))


def test_a_wider_map_than_the_graph_promised_is_refused_where_y_lies_in_its_memory() -> None:
    """ONNX Runtime believes the file's `value_info`, and gives y the memory of x."""
    values = activate_case((1, 24, 24, 20), 0, gate=False, residual=False, scalar=False, wider=1)
    model = onnx.load_from_string(activate_model(values, ("y",), wider=1))
    model.graph.node[0].input[0], model.graph.node[0].output[0] = "moved", "kept"
    model.graph.node.insert(0, helper.make_node("Reshape", ["x", "shape"], ["moved"]))
    model.graph.node.append(helper.make_node("Neg", ["kept"], ["y"]))
    model.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [4]))
    model.graph.value_info.append(helper.make_tensor_value_info("moved", TensorProto.FLOAT, [1, 24, 24, 20]))
    x = values["x"].reshape(1, -1, 24, 21)
    session = InferenceSession(model.SerializeToString(), session_options())
    got: Any
    try:
        got = session.run(None, {"x": x, "shape": np.array(values["x"].shape)})[0]
    except Exception as error:
        assert "the graph promised" in str(error)
    else:  # the runtime gave y memory of its own
        np.testing.assert_array_equal(got, -expected_activation(values, 1)["y"])


@st.composite
def pools(draw: st.DrawFn) -> tuple[str, tuple[int, int], Conv, tuple[int, ...], bool]:
    """A mode, a kernel, strides and the like, a map's shape, and whether padding counts."""
    mode = draw(st.sampled_from(["max", "average"]))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pads = tuple(draw(st.integers(0, k - 1)) for k in kernel * 2)
    dilations = draw(st.tuples(st.integers(1, 2), st.integers(1, 2))) if mode == "max" else (1, 1)
    conv = Conv(1, 1, draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), pads, dilations)
    least = [max(1, dilations[a] * (kernel[a] - 1) + 1 - pads[a] - pads[a + 2]) for a in (0, 1)]
    size = [low + draw(st.integers(0, 6)) for low in least]
    shape = (draw(st.integers(0, 2)), *size, draw(channel_counts))
    return mode, kernel, conv, shape, mode == "average" and draw(st.booleans())


def pool_model(mode: str, kernel: Any, conv: Conv, x: np.ndarray, counts: bool, functions: Any = ()) -> bytes:
    own = {"dilations": list(conv.dilations)} if mode == "max" else {"count_include_pad": int(counts)}
    op_type = {"max": "MaxPool", "average": "AveragePool"}[mode]
    window = {"kernel_shape": list(kernel), "strides": list(conv.strides), "pads": list(conv.pads)}
    node = helper.make_node(op_type, ["x"], ["y"], name="pool", domain="ai.binarize", **window, **own)
    return model_bytes([node], {"x": x}, {}, {"y": tensor_type(x)}, functions)


@EXPLORE
@given(case=pools(), half=st.booleans(), threads=st.sampled_from(THREADS), seed=st.integers(0, 2**32 - 1))
def test_pools_equal_the_reference(case: Any, half: bool, threads: int, seed: int) -> None:
    mode, kernel, conv, shape, counts = case
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float16 if half else np.float32)
    expected = reference.pool(x, kernel, conv, mode=mode, count_include_pad=counts)
    for isa in available_isas():
        with forced_isa(isa):
            session = InferenceSession(pool_model(mode, kernel, conv, x, counts), session_options(threads))
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected, err_msg=isa, strict=True)


@pytest.mark.parametrize(("mode", "counts"), [("max", False), ("average", False), ("average", True)])
def test_pool_functions_agree(mode: str, counts: bool) -> None:
    conv = Conv(1, 1, (2, 1), (1, 0, 1, 1), (1, 1))
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 20)).astype(np.float32)
    model = pool_model(mode, (3, 2), conv, x, counts, model_local_functions())
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    got = onnxruntime.InferenceSession(model, session_options()).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, reference.pool(x, (3, 2), conv, mode=mode, count_include_pad=counts), atol=1e-6)


def test_pool_refuses_a_window_larger_than_the_map() -> None:
    x = np.zeros((1, 2, 2, 4), np.float32)
    with pytest.raises(Exception, match="does not fit a map"):
        session = InferenceSession(pool_model("max", (3, 3), Conv(1), x, False), session_options())
        session.run(None, {"x": x})


def test_the_average_of_a_large_map_is_exact_to_a_few_roundings(isa: str) -> None:
    """As squeeze-excite behind a stem takes it; a channel that is constant rounds the same way at every addition."""
    x = np.full((1, 112, 112, 20), 1.0187997, np.float32)
    got = InferenceSession(pool_model("average", (112, 112), Conv(1), x, False), session_options()).run(None, {"x": x})
    np.testing.assert_allclose(got[0], x[:, :1, :1], rtol=32 * 2.0**-24)


def test_nan_reaches_no_maximum_but_every_average(isa: str) -> None:
    x = np.array([1.0, np.nan, 3.0, np.nan], np.float32).reshape(1, 2, 2, 1)
    for mode, expected in (("max", 3.0), ("average", np.nan)):
        session = InferenceSession(pool_model(mode, (2, 2), Conv(1), x, False), session_options())
        np.testing.assert_array_equal(session.run(None, {"x": x})[0].ravel(), [expected])


def gate_case(
    shape: tuple[int, ...], hidden: int, outputs: int, seed: int, *, biased: bool = True, half: bool = False
) -> dict[str, np.ndarray]:
    """All inputs of a Gate by name."""
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, size=shape).astype(np.float16 if half else np.float32)
    values = {
        "x": x,
        "reduce": rng.normal(size=(shape[3], hidden)),
        "reduce_bias": rng.normal(size=hidden if biased else 1),
        "expand": rng.normal(0, 3, size=(hidden, outputs)),
        "expand_bias": rng.normal(size=outputs if biased else 1),
    }
    return {name: value if name == "x" else value.astype(np.float32) for name, value in values.items()}


def gate_model(values: dict[str, np.ndarray], functions: Any = (), **attributes: int) -> bytes:
    node = helper.make_node("Gate", [*values], ["factor"], name="gate", domain="ai.binarize", **attributes)
    constants = {name: value for name, value in values.items() if name != "x"}
    return model_bytes([node], {"x": values["x"]}, constants, {"factor": TensorProto.FLOAT}, functions)


@EXPLORE
@given(
    pixels=st.tuples(st.integers(0, 2), st.integers(1, 5), st.integers(1, 9)),
    channels=channel_counts,
    hidden=st.integers(1, 40),
    outputs=channel_counts,
    biased=st.booleans(),
    half=st.booleans(),
    silu=st.sampled_from([0, 1]),
    hard=st.sampled_from([0, 1]),
    threads=st.sampled_from(THREADS),
    seed=st.integers(0, 2**32 - 1),
)
def test_gates_equal_the_reference_and_the_function(
    pixels: Any,
    channels: int,
    hidden: int,
    outputs: int,
    biased: bool,
    half: bool,
    silu: int,
    hard: int,
    threads: int,
    seed: int,
) -> None:
    values = gate_case((*pixels, channels), hidden, outputs, seed, biased=biased, half=half)
    expected = reference.gate(**values, silu=bool(silu), hard=bool(hard))
    model = gate_model(values, silu=silu, hard=hard)
    for isa in available_isas():
        with forced_isa(isa):
            session = InferenceSession(model, session_options(threads))
        np.testing.assert_array_equal(session.run(None, {"x": values["x"]})[0], expected, strict=True, err_msg=isa)
    model = gate_model(values, model_local_functions(), silu=silu, hard=hard)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    stock = onnxruntime.InferenceSession(model, session_options(threads))
    np.testing.assert_allclose(stock.run(None, {"x": values["x"]})[0], expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("threads", THREADS)
def test_large_gates_are_split_between_threads_and_stay_equal(threads: int) -> None:
    values = gate_case((2, 30, 31, 203), 190, 310, 1)
    session = InferenceSession(gate_model(values, silu=1), session_options(threads))
    np.testing.assert_array_equal(session.run(None, {"x": values["x"]})[0], reference.gate(**values, silu=True))


def test_the_sigmoid_of_gates_is_right_from_end_to_end() -> None:
    t = np.concatenate([np.linspace(-90, 90, 20001), [-np.inf, np.inf, np.nan, 0.0, -1e30, 1e30]]).astype(np.float32)
    values = gate_case((1, 1, 1, 1), 1, len(t), 0)
    values |= {"x": np.ones((1, 1, 1, 1), np.float32), "reduce": np.zeros((1, 1), np.float32)}
    values |= {"reduce_bias": np.zeros(1, np.float32), "expand": np.zeros((1, len(t)), np.float32), "expand_bias": t}
    factors = InferenceSession(gate_model(values), session_options()).run(None, {"x": values["x"]})[0].ravel()
    with np.errstate(over="ignore"):
        exact = 1 / (1 + np.exp(-t.astype(np.float64)))
    np.testing.assert_allclose(factors, exact, rtol=4e-7, atol=2e-38)


@pytest.mark.parametrize(
    ("changed", "attributes", "message"),
    [
        ({"reduce": (4, 3)}, {}, "input x must have the shape"),
        ({"reduce": (5,)}, {}, "input reduce must have two dimensions"),
        ({"reduce": (5, 4)}, {}, "input reduce_bias"),
        ({"expand": (4, 7)}, {}, "input expand must have a row for each column of reduce"),
        ({"expand_bias": (6,)}, {}, "input expand_bias"),
        ({"x": (1, 2, 5)}, {}, "input x must have the shape"),
        ({}, {"silu": 2}, "attribute silu"),
        ({}, {"hard": -1}, "attribute hard"),
    ],
)
def test_gates_refuse_what_does_not_fit(changed: dict[str, Any], attributes: dict[str, int], message: str) -> None:
    values = gate_case((1, 2, 2, 5), 3, 7, 0)
    values |= {name: np.zeros(shape, np.float32) for name, shape in changed.items()}
    with pytest.raises(Exception, match=rf"Gate node .gate..*{message}"):
        InferenceSession(gate_model(values, **attributes), session_options()).run(None, {"x": values["x"]})
