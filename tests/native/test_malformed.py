"""Broken models and inputs give errors that name operator, node and reason, and never a crash."""

from __future__ import annotations

import math
import re
import resource
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy_reference import Conv
from onnx import helper, numpy_helper
from op_models import ONE_MAP, ZERO_MAP, Case, conv_model, feeds, make_case, model_bytes, session_options, tensor_type

from binarize.errors import UnsupportedModelError
from binarize.runtime import InferenceSession


def ordinary() -> Case:
    return make_case(channels=64, out_channels=32, link=True, residual=True)


def refuse(model: bytes, *words: str) -> None:
    """The session is refused, and the message has the node's name and all `words`."""
    with pytest.raises(UnsupportedModelError) as refusal:
        InferenceSession(model, session_options())
    for word in ("conv_under_test", *words):
        assert word in str(refusal.value)


ATTRIBUTES: dict[str, tuple[dict[str, Any], str]] = {
    "no channels": ({"channels": None}, "channels"),
    "zero channels": ({"channels": 0}, "channels"),
    "negative channels": ({"channels": -64}, "channels"),
    "channels of another weight": ({"channels": 65}, "weight"),
    "enormous channels": ({"channels": 2**62}, "channels"),
    "channels as text": ({"channels": "64"}, "channels"),
    "zero group": ({"group": 0}, "group"),
    "negative group": ({"group": -1}, "group"),
    "group that does not divide": ({"group": 3}, "group"),
    "enormous group": ({"group": 2**62}, "group"),
    "zero stride": ({"strides": [0, 1]}, "strides"),
    "negative stride": ({"strides": [1, -1]}, "strides"),
    "one stride": ({"strides": [1]}, "strides"),
    "three strides": ({"strides": [1, 1, 1]}, "strides"),
    "enormous stride": ({"strides": [2**62, 1]}, "strides"),
    "negative pad": ({"pads": [-1, 0, 0, 0]}, "pads"),
    "two pads": ({"pads": [1, 1]}, "pads"),
    "enormous pad": ({"pads": [0, 0, 0, 2**62]}, "pads"),
    "zero dilation": ({"dilations": [1, 0]}, "dilations"),
    "enormous dilation": ({"dilations": [2**61, 2**61]}, "dilations"),
    "zero planes": ({"planes": 0}, "planes"),
    "enormous planes": ({"planes": 2**62}, "planes"),
    "negative bases": ({"bases": -1}, "bases"),
    "bases that do not divide the rows": ({"bases": 3}, "bases"),
    "enormous bases": ({"bases": 2**62}, "bases"),
    "neither binary nor ternary": ({"ternary": 2}, "ternary"),
    "a plane before the first": ({"first_plane": -1}, "first_plane"),
    "enormous first plane": ({"first_plane": 2**62}, "first_plane"),
    "group as a float": ({"group": 1.0}, "group must be an integer"),
    "group as text": ({"group": "32"}, "group must be an integer"),
    "group as a list": ({"group": [1, 1]}, "group must be an integer"),
    "strides as an integer": ({"strides": 1}, "strides must have 2 integers"),
    "strides as floats": ({"strides": [1.5, 1.0]}, "strides must have 2 integers"),
    "pads as text": ({"pads": "same"}, "pads must have 4 integers"),
    "automatic pads": ({"auto_pad": "SAME_UPPER"}, "no attribute auto_pad"),
    "a kernel shape beside the weight": ({"kernel_shape": [3, 3]}, "no attribute kernel_shape"),
}


@pytest.mark.parametrize(("change", "word"), ATTRIBUTES.values(), ids=ATTRIBUTES.keys())
def test_wrong_attributes_are_refused(change: dict[str, Any], word: str) -> None:
    refuse(conv_model(ordinary(), **change), "BinaryConv2d", word)


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, dtype=np.float32)


CONSTANTS: dict[str, tuple[str, np.ndarray]] = {
    "weight of rank 3": ("weight", np.zeros((32, 3, 3), dtype=np.uint64)),
    "weight of too many words": ("weight", np.zeros((32, 3, 3, 2), dtype=np.uint64)),
    "weight without rows": ("weight", np.zeros((0, 3, 3, 1), dtype=np.uint64)),
    "weight without taps": ("weight", np.zeros((32, 0, 3, 1), dtype=np.uint64)),
    "scale of another length": ("scale", floats(31)),
    "scale of rank 2": ("scale", floats(1, 32)),
    "empty scale": ("scale", floats(0)),
    "bias of another length": ("bias", floats(64)),
    "gamma as a scalar": ("gamma", floats()),
    "slope of another length": ("slope", floats(2)),
    "shift of another length": ("shift", floats(33)),
    "threshold of another length": ("next_threshold", floats(16)),
    "threshold of no plane": ("next_threshold", floats(0, 32)),
    "threshold of too many planes": ("next_threshold", floats(65, 32)),
    "planes of thresholds of another length": ("next_threshold", floats(2, 31)),
}


@pytest.mark.parametrize(("name", "value"), CONSTANTS.values(), ids=CONSTANTS.keys())
def test_wrong_constants_are_refused(name: str, value: np.ndarray) -> None:
    case = ordinary()
    refuse(conv_model(Case(case.conv, {**case.values, name: value})), "BinaryConv2d", name.split("_")[0])


def test_wrong_element_type_is_refused() -> None:
    case = ordinary()
    with pytest.raises(UnsupportedModelError):
        InferenceSession(conv_model(Case(case.conv, {**case.values, "scale": np.ones(32)})), session_options())


@pytest.mark.parametrize("name", ["weight", "scale", "bias", "gamma", "slope", "shift", "next_threshold"])
def test_parameters_must_be_constant(name: str) -> None:
    case = ordinary()
    model = onnx.load_from_string(conv_model(case))
    kept = [i for i in model.graph.initializer if i.name != name]
    value = case.values[name]
    model.graph.input.append(helper.make_tensor_value_info(name, tensor_type(value), value.shape))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    refuse(model.SerializeToString(), name, "constant")


@pytest.mark.parametrize("name", ["gate", "factor"])
def test_inputs_without_a_name_are_refused(name: str) -> None:
    model = onnx.load_from_string(conv_model(ordinary()))
    node = model.graph.node[0]
    node.input[list(node.input).index(name)] = ""
    refuse(model.SerializeToString(), f"input {name} is listed without a name")


@pytest.mark.parametrize(
    ("op", "name", "value"),
    [
        ("MaxPool", "ceil_mode", 1),
        ("MaxPool", "auto_pad", "VALID"),
        ("MaxPool", "storage_order", 1),
        ("AveragePool", "dilations", [2, 2]),
        ("AveragePool", "ceil_mode", 1),
    ],
)
def test_pools_refuse_attributes_that_only_the_standard_ones_have(op: str, name: str, value: Any) -> None:
    attributes = {"kernel_shape": [2, 2], name: value}
    node = helper.make_node(op, ["x"], ["y"], name="conv_under_test", domain="ai.binarize", **attributes)
    model = model_bytes([node], {"x": np.zeros((1, 4, 4, 3), np.float32)}, {}, {"y": onnx.TensorProto.FLOAT})
    refuse(model, f"ai.binarize.{op}", f"no attribute {name}")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_truncated_initializer_is_refused(share: float) -> None:
    model = onnx.load_from_string(conv_model(ordinary()))
    weight = next(i for i in model.graph.initializer if i.name == "weight")
    weight.raw_data = weight.raw_data[: int(len(weight.raw_data) * share)]
    with pytest.raises(UnsupportedModelError):
        InferenceSession(model.SerializeToString(), session_options())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_file_is_refused(share: float) -> None:
    model = conv_model(ordinary())
    with pytest.raises(UnsupportedModelError):
        InferenceSession(model[: int(len(model) * share)], session_options())


INPUTS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "bits of no word": ({"bits": (1, 6, 7, 0)}, "bits"),
    "empty map": ({"bits": (1, 0, 7, 1)}, "height of the map"),
    "empty map of no image": ({"bits": (0, 6, 0, 1)}, "width of the map"),
    "link of another size": ({"link": (1, 6, 6, 64)}, "link"),
    "link of other channels": ({"link": (1, 6, 7, 63)}, "link"),
    "link of another batch": ({"link": (2, 6, 7, 64)}, "link"),
    "residual of another size": ({"residual": (1, 5, 7, 32)}, "residual"),
    "residual of one channel": ({"residual": (1, 6, 7, 1)}, "residual"),
    "gate of other channels": ({"gate": (1, 1, 1, 31)}, "gate"),
    "gate of another batch": ({"gate": (2, 1, 1, 32)}, "gate"),
    "factor of another size": ({"factor": (1, 6, 6, 1)}, "factor"),
    "factor of another batch": ({"factor": (2, 6, 7, 1)}, "factor"),
    "factor per channel": ({"factor": (1, 6, 7, 32)}, "factor"),
}


@pytest.mark.parametrize(("shapes", "word"), INPUTS.values(), ids=INPUTS.keys())
def test_wrong_input_shapes_fail_the_run(shapes: dict[str, tuple[int, ...]], word: str) -> None:
    case = make_case(channels=64, out_channels=32, link=True, residual=True, gate=True, factor="image")
    session = InferenceSession(conv_model(case), session_options())
    wrong = {n: np.zeros(shapes.get(n, a.shape), dtype=a.dtype) for n, a in feeds(case).items()}
    with pytest.raises(Exception, match=f"(?s)conv_under_test.*{word}"):
        session.run(None, wrong)
    session.run(None, feeds(case))  # and the session is still good


def test_a_kernel_larger_than_the_map_fails_the_run() -> None:
    case = make_case(channels=64, out_channels=8, kernel=(3, 3), pads=(0,) * 4)
    session = InferenceSession(conv_model(case), session_options())
    with pytest.raises(Exception, match="does not fit"):
        session.run(None, {"bits": np.zeros((1, 2, 7, 1), dtype=np.uint64)})


def test_planes_that_the_map_does_not_have_fail_the_run() -> None:
    case = make_case(channels=64, out_channels=32, first_plane=2)
    session = InferenceSession(conv_model(case), session_options())
    with pytest.raises(Exception, match="at least 3 planes"):
        session.run(None, {"bits": np.zeros((1, 6, 7, 2), dtype=np.uint64)})


def test_a_scale_per_term_must_have_all_terms() -> None:
    case = make_case(channels=64, out_channels=32, planes=2, bases=3)
    for shape in ((5, 32), (6, 31), (192,), (2, 3, 32), (1, 32)):
        wrong = Case(case.conv, {**case.values, "scale": floats(*shape)})
        refuse(conv_model(wrong), "BinaryConv2d", "scale")


@pytest.mark.parametrize("shape", [(7,), (2, 7), (0, 8), (1, 2, 8)])
def test_pack_refuses_a_wrong_threshold_and_rank(shape: tuple[int, ...]) -> None:
    node = helper.make_node("Pack", ["x", "t"], ["bits"], name="conv_under_test", domain="ai.binarize")
    x, t = np.zeros((1, 2, 2, 8), dtype=np.float32), np.zeros(shape, dtype=np.float32)
    model = model_bytes([node], {"x": x, "t": t}, {}, {"bits": onnx.TensorProto.UINT64})
    session = InferenceSession(model, session_options())
    with pytest.raises(Exception, match=r"(?s)ai.binarize.Pack node 'conv_under_test'.*threshold"):
        session.run(None, {"x": x, "t": t})


huge = st.one_of(st.integers(-2, 3), st.sampled_from([2**20, 2**20 + 1, 2**31, 2**32, 2**62, -(2**63), 2**63 - 1]))


@settings(max_examples=150, deadline=None)
@given(
    channels=huge,
    group=huge,
    strides=st.lists(huge, max_size=3),
    pads=st.lists(huge, max_size=5),
    dilations=st.lists(huge, max_size=3),
    terms=st.fixed_dictionaries({}, optional=dict.fromkeys(("planes", "bases", "ternary", "first_plane"), huge)),
    weight=st.tuples(*[st.integers(0, 3)] * 4),
)
def test_random_attributes_never_crash(
    channels: int, group: int, strides: list, pads: list, dilations: list, terms: dict, weight: tuple[int, ...]
) -> None:
    """Whatever the file says, there is a session or one of our errors; a run gives a result or an error."""
    bits = np.zeros((1, 4, 4, 1), dtype=np.uint64)
    one = np.ones(1, dtype=np.float32)
    values = dict.fromkeys(["scale", "bias", "gamma", "slope", "shift", "next_threshold"], one)
    values |= {
        "bits": bits,
        "weight": np.zeros(weight, dtype=np.uint64),
        "link": ZERO_MAP,
        "residual": ZERO_MAP,
        "gate": ONE_MAP,
        "factor": ONE_MAP,
    }
    case = Case(Conv(64), values)
    too_large = any(4 < abs(v) <= 2**20 for v in pads)  # legal, but gigabytes of output
    attributes = {
        "strides": strides or None,
        "pads": None if too_large else pads or None,
        "dilations": dilations or None,
    }
    model = conv_model(case, channels=channels, group=group, **attributes, **terms)
    try:
        session = InferenceSession(model, session_options())
    except UnsupportedModelError:
        return
    try:
        session.run(None, {"bits": bits})
    except Exception as error:
        assert "conv_under_test" in str(error)


# Extents of a map without images: no memory stands behind them, whatever they are.
@settings(max_examples=100, deadline=None)
@given(
    extents=st.tuples(*[st.one_of(huge, st.just(2**27))] * 2),
    conv=st.fixed_dictionaries(
        {},
        optional={
            "strides": st.sampled_from([[1, 2], [2**20, 2**20]]),
            "pads": st.sampled_from([[0, 1, 2, 3], [2**20] * 4]),
            "dilations": st.sampled_from([[1, 1], [2**20, 1]]),
        },
    ),
)
@example(extents=(2**27, 1), conv={})  # took 512 MB for the tables of its borders
@example(extents=(2**63 - 1, 2**63 - 1), conv={"pads": [2**20] * 4})  # overflowed
def test_maps_of_no_image_take_no_memory(extents: tuple[int, int], conv: dict[str, list[int]]) -> None:
    case = make_case(channels=64, out_channels=32)
    model = onnx.load_from_string(conv_model(case, **conv))
    shape = numpy_helper.from_array(np.array([0, *extents, 1], dtype=np.int64), "shape")
    model.graph.initializer.append(shape)
    zero = numpy_helper.from_array(np.zeros(1, dtype=np.uint64))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["bits"], name="maker", value=zero))
    del model.graph.input[:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        outputs = InferenceSession(model.SerializeToString(), session_options()).run(None, {})
    except Exception as error:
        assert re.search("conv_under_test|maker", str(error))
        assert conv or not all(1 <= extent <= 3 for extent in extents)
    else:
        assert all(output.shape[0] == 0 for output in outputs)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


extents = st.sampled_from([0, 1, 2, 3, 64, 65, 2**20, 2**31, 2**62, 2**63 - 1])
maps = st.one_of(st.tuples(*[extents] * 4), st.lists(extents, max_size=5).map(tuple))


def declared(model: bytes, shapes: dict[str, tuple[int, ...]]) -> bytes:
    """`model` with the shapes that its inputs claim to have."""
    proto = onnx.load_from_string(model)
    for value in proto.graph.input:
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for extent in shapes[value.name]:
            shape.dim.add().dim_value = extent
    return bytes(proto.SerializeToString())


def runs_or_is_refused(model: bytes, inputs: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> None:
    """There is a session or one of our errors; if the inputs fit into memory, a result or an error."""
    try:
        session = InferenceSession(declared(model, {n: shape for n, (_, shape) in inputs.items()}), session_options())
    except UnsupportedModelError:
        return
    if all(max(shape, default=1) <= 65 and math.prod(shape) <= 1 << 12 for _, shape in inputs.values()):
        try:
            session.run(None, {name: np.zeros(shape, kind) for name, (kind, shape) in inputs.items()})
        except Exception as error:
            assert "node_under_test" in str(error)  # ours, with the node's name


@settings(max_examples=200, deadline=None)
@given(x=maps, threshold=st.lists(extents, max_size=3).map(tuple), half=st.booleans())
@example(x=(1, 2, 2, 0), threshold=(2, 0), half=False)  # planes times words was checked by a division by the words
@example(x=(1, 2, 2, 0), threshold=(0,), half=False)
def test_pack_of_any_shape_never_crashes(x: tuple[int, ...], threshold: tuple[int, ...], half: bool) -> None:
    kind = np.dtype(np.float16 if half else np.float32)
    node = helper.make_node("Pack", ["x", "t"], ["bits"], name="node_under_test", domain="ai.binarize")
    some = {"x": np.zeros((1,) * len(x), kind), "t": np.zeros((1,) * len(threshold), np.float32)}
    model = model_bytes([node], some, {}, {"bits": onnx.TensorProto.UINT64})
    runs_or_is_refused(model, {"x": (kind, x), "t": (np.dtype(np.float32), threshold)})


@settings(max_examples=100, deadline=None)
@given(x=maps, channels=huge, parameters=st.sampled_from([0, 1, 2, 64]), link=st.sampled_from([-1, 0, 1, 16, 64]))
def test_activate_of_any_shape_never_crashes(x: tuple[int, ...], channels: int, parameters: int, link: int) -> None:
    names = ["x", "gate", "scale", "bias", "residual", "slope", "shift", "next_threshold"]
    constants = {name: np.ones(parameters, np.float32) for name in names[2:]} | {"gate": ONE_MAP, "residual": ZERO_MAP}
    if link >= 0:
        constants["gamma"] = np.ones(link, np.float32)
    op_type, inputs = ("Activate", names) if link < 0 else ("ActivateLink", [*names, "gamma"])
    node = helper.make_node(
        op_type, inputs, ["y", "next_bits"], name="node_under_test", domain="ai.binarize", channels=channels
    )
    outputs = {"y": onnx.TensorProto.FLOAT, "next_bits": onnx.TensorProto.UINT64}
    model = model_bytes([node], {"x": np.zeros((1,) * len(x), np.float32)}, constants, outputs)
    runs_or_is_refused(model, {"x": (np.dtype(np.float32), x)})


@settings(max_examples=100, deadline=None)
@given(x=maps, into=maps, constant=st.booleans(), attributes=st.fixed_dictionaries({"first": huge, "channels": huge}))
def test_places_of_any_shape_never_crash(
    x: tuple[int, ...], into: tuple[int, ...], constant: bool, attributes: dict[str, int]
) -> None:
    node = helper.make_node("Place", ["x", "into"], ["y"], name="node_under_test", domain="ai.binarize", **attributes)
    inputs = {n: np.zeros((1,) * len(shape), np.float32) for n, shape in (("x", x), ("into", into))}
    if constant:
        del inputs["into"]
    constants = {"into": np.zeros([min(max(e, 0), 3) for e in into], np.float32)} if constant else {}
    model = model_bytes([node], inputs, constants, {"y": onnx.TensorProto.FLOAT})
    fed = {"x": x} | ({} if constant else {"into": into})
    runs_or_is_refused(model, {name: (np.dtype(np.float32), shape) for name, shape in fed.items()})


@settings(max_examples=100, deadline=None)
@given(a=maps, b=maps, of_a=huge, channels=st.lists(st.one_of(huge, extents), max_size=4), constant=st.booleans())
def test_gathering_any_channels_never_crashes(
    a: tuple[int, ...], b: tuple[int, ...], of_a: int, channels: list[int], constant: bool
) -> None:
    inputs = ["a", "b", "channels"]
    node = helper.make_node(
        "GatherChannels", inputs, ["y"], name="node_under_test", domain="ai.binarize", channels_a=of_a
    )
    fed = {"a": a} | ({} if constant else {"b": b})
    constants = {"channels": np.array(channels, np.int64)} | ({"b": ZERO_MAP} if constant else {})
    ones = {name: np.zeros((1,) * len(shape), np.float32) for name, shape in fed.items()}
    model = model_bytes([node], ones, constants, {"y": onnx.TensorProto.FLOAT})
    runs_or_is_refused(model, {name: (np.dtype(np.float32), shape) for name, shape in fed.items()})


@settings(max_examples=100, deadline=None)
@given(
    x=maps,
    reduce=st.lists(extents, max_size=3),
    expand=st.lists(extents, max_size=3),
    biases=st.tuples(extents, extents),
    attributes=st.fixed_dictionaries({}, optional=dict.fromkeys(("silu", "hard"), huge)),
)
def test_gates_of_any_shape_never_crash(
    x: tuple[int, ...], reduce: list[int], expand: list[int], biases: tuple[int, int], attributes: dict[str, int]
) -> None:
    shapes = {"reduce": reduce, "reduce_bias": [biases[0]], "expand": expand, "expand_bias": [biases[1]]}
    constants = {name: np.zeros([min(max(e, 0), 9) for e in shape], np.float32) for name, shape in shapes.items()}
    node = helper.make_node(
        "Gate", ["x", *constants], ["y"], name="node_under_test", domain="ai.binarize", **attributes
    )
    model = model_bytes([node], {"x": np.zeros((1,) * len(x), np.float32)}, constants, {"y": onnx.TensorProto.FLOAT})
    runs_or_is_refused(model, {"x": (np.dtype(np.float32), x)})


@settings(max_examples=100, deadline=None)
@given(
    x=maps,
    op=st.sampled_from(["MaxPool", "AveragePool"]),
    windows=st.fixed_dictionaries({}, optional={n: st.lists(huge, max_size=3) for n in ("kernel_shape", "strides")}),
    pads=st.lists(huge, max_size=5),
    other=huge,
)
def test_pools_of_any_window_never_crash(
    x: tuple[int, ...], op: str, windows: dict[str, list[int]], pads: list[int], other: int
) -> None:
    own = {"dilations": [other, 1]} if op == "MaxPool" else {"count_include_pad": other}
    lists = {name: values for name, values in (windows | {"pads": pads}).items() if values}
    node = helper.make_node(op, ["x"], ["y"], name="node_under_test", domain="ai.binarize", **lists, **own)
    model = model_bytes([node], {"x": np.zeros((1,) * len(x), np.float32)}, {}, {"y": onnx.TensorProto.FLOAT})
    runs_or_is_refused(model, {"x": (np.dtype(np.float32), x)})


@settings(max_examples=100, deadline=None)
@given(
    image=maps,
    weight=st.tuples(*[st.integers(0, 4)] * 4),
    attributes=st.fixed_dictionaries(
        {},
        optional={n: st.lists(huge, min_size=1, max_size=5) for n in ("strides", "pads", "pool_strides", "pool_pads")},
    ),
)
def test_int8_convs_of_any_shape_never_crash(
    image: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, list[int]]
) -> None:
    names = ["image", "factor", "zero_point", "weight", "scale", "bias", "residual", "slope", "shift", "next_threshold"]
    outputs = ["y", "next_bits"]
    node = helper.make_node("Int8Conv2d", names, outputs, name="node_under_test", domain="ai.binarize", **attributes)
    constants = {name: np.ones(1, np.float32) for name in names[1:]}
    constants |= {"zero_point": np.zeros(1, np.uint8), "weight": np.ones(weight, np.int8), "residual": ZERO_MAP}
    kinds = {"y": onnx.TensorProto.FLOAT, "next_bits": onnx.TensorProto.UINT64}
    model = model_bytes([node], {"image": np.zeros((1,) * len(image), np.float32)}, constants, kinds)
    runs_or_is_refused(model, {"image": (np.dtype(np.float32), image)})
