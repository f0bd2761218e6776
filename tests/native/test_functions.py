"""The model-local functions on stock ONNX Runtime against the kernels: one file, equal results.

Accumulators agree exactly. Floats differ by rounding only: the function has no fused multiply-add and sums
the link in another order. With |t| of the order of the largest summand m, a handful of roundings of 2**-24
each and a link of at most a few hundred terms stay below 1e-5 * m; next bits may then flip only where y is
that close to its threshold.
"""

from __future__ import annotations

import numpy as np
import numpy_reference as reference
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper
from op_models import (
    Case,
    conv_model,
    feeds,
    make_case,
    model_bytes,
    run_function,
    run_kernel,
    session_options,
)
from test_kernels import SHAPES, cases

from binarize.exporting.functions import model_local_functions
from binarize.runtime import InferenceSession

RELATIVE_TOLERANCE = 1e-5


def assert_function_agrees(case: Case) -> None:
    kernel, function = run_kernel(case), run_function(case)
    y, expected_bits = case.expected()
    tolerance = RELATIVE_TOLERANCE * max(1.0, float(np.abs(y).max(initial=0)), _largest_term(case))
    if case.stream is np.float16:  # rounding to float16 may fall to either side: one unit of its last place
        tolerance += 2.0**-10 * float(np.abs(y.astype(np.float32)).max(initial=0))
    if "y" in case.outputs:
        assert function["y"].shape == kernel["y"].shape
        np.testing.assert_allclose(function["y"], kernel["y"], rtol=0, atol=tolerance)
    if "next_bits" in case.outputs:
        assert function["next_bits"].shape == kernel["next_bits"].shape
        threshold = case.values["next_threshold"]
        assert reference.wrong_bits(function["next_bits"], expected_bits, y, threshold, tolerance) == 0


def _largest_term(case: Case) -> float:
    """Largest product of accumulator and scale: cancellation may leave y far smaller."""
    accumulators = np.abs(reference.accumulators_by_term(case.values["bits"], case.values["weight"], case.conv))
    scale, gate, factor = (np.abs(case.values[name].astype(np.float64)) for name in ("scale", "gate", "factor"))
    scales = np.broadcast_to(scale, (case.conv.terms, accumulators.shape[-1]))[:, None, None, None]
    return float((accumulators * scales * gate * factor).max(initial=0))


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_function_agrees_with_kernel(case: Case) -> None:
    assert_function_agrees(case)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_function_agrees_on_shapes_of_real_nets(shape: dict) -> None:
    assert_function_agrees(make_case(**shape, link=True, residual=True, slope=True, shift=True, seed=5))


def test_accumulators_of_the_function_are_exact() -> None:
    case = make_case(channels=130, out_channels=64, exact=True, outputs=("y",))
    np.testing.assert_array_equal(run_function(case)["y"], run_kernel(case)["y"])


@pytest.mark.parametrize("bits", [[0], [63], [0, 63], [0, 53], list(range(64)), [64, 69, 31, 32]])
def test_pack_function_is_exact_in_every_bit(bits: list[int]) -> None:
    """Regression test: ONNX Runtime sums int64 through doubles, which lose the low bits of a full word."""
    x = np.zeros((1, 1, 2, 70), dtype=np.float32)
    x[..., bits] = 1
    threshold = np.zeros(1, dtype=np.float32)
    node = helper.make_node("Pack", ["x", "threshold"], ["bits"], domain="ai.binarize")
    model = model_bytes(
        [node], {"x": x}, {"threshold": threshold}, {"bits": TensorProto.UINT64}, model_local_functions()
    )
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    (got,) = onnxruntime.InferenceSession(model, session_options()).run(None, {"x": x})
    np.testing.assert_array_equal(got, reference.pack(x, threshold), strict=True)


@pytest.mark.parametrize("outputs", [("y", "next_bits"), ("y",), ("next_bits",)])
def test_checker_accepts_a_model_with_functions(outputs: tuple[str, ...]) -> None:
    case = make_case(channels=64, out_channels=64, link=True, outputs=outputs)
    onnx.checker.check_model(
        onnx.load_from_string(conv_model(case, functions=model_local_functions())), full_check=True
    )


def test_attributes_may_be_left_out() -> None:
    case = make_case(channels=64, out_channels=32, pads=(0,) * 4, link=True)
    absent = dict.fromkeys(["group", "strides", "pads", "dilations"])
    model = conv_model(case, model_local_functions(), **absent)
    for session in (
        InferenceSession(model, session_options()),
        onnxruntime.InferenceSession(model, session_options()),
    ):
        got = session.run(["y"], feeds(case))[0]
        np.testing.assert_allclose(got, case.expected()[0], atol=1e-3)


def test_the_registered_kernel_wins_over_the_function() -> None:
    """Kernel and function differ in some float's last bit; with the library, the kernel's come out."""
    case = make_case(channels=256, out_channels=256, link=True, residual=True, outputs=("y",), seed=9)
    session = InferenceSession(conv_model(case, model_local_functions()), session_options())
    with_library = session.run(None, feeds(case))[0]
    np.testing.assert_array_equal(with_library, case.expected()[0])
    assert not np.array_equal(run_function(case)["y"], with_library)
