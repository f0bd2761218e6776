"""The library as ONNX Runtime and the system see it: exports, dispatch, threads, shapes, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import test_int8_conv
from numpy_reference import Conv
from onnx import TensorProto, helper, numpy_helper
from op_models import (
    THREADS,
    ZERO_MAP,
    Case,
    available_isas,
    conv_model,
    conv_node,
    feeds,
    make_case,
    model_bytes,
    run_kernel,
    session_options,
)
from test_pointwise import (
    activate_case,
    activate_model,
    fed,
    gate_case,
    gate_model,
    gather_model,
    place_model,
    pool_model,
)

import binarize.runtime
from binarize.errors import EnvironmentProblem, UsageError
from binarize.runtime import InferenceSession, active_isa, library_path, register

of_the_installed_library = pytest.mark.skipif(
    "BINARIZE_SANITIZED_LIBRARY" in os.environ, reason="a sanitized library exports, links and frees otherwise"
)


def test_this_isa_really_runs(isa: str) -> None:
    """Else all tests "on every instruction set" might run the same code."""
    assert active_isa() == isa


def test_the_best_isa_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BINARIZE_ISA", raising=False)
    assert active_isa() == available_isas()[-1]
    monkeypatch.setenv("BINARIZE_ISA", "")
    assert active_isa() == available_isas()[-1]


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("avx512", {"avx512_vpopcntdq", "avx512_vnni"}),
        ("amx", {"avx512_vpopcntdq", "avx512_vnni", "amx_tile", "amx_int8"}),
        ("avxvnni", {"avx2", "fma", "f16c", "avx_vnni"}),
    ],
)
def test_what_the_cpu_has_is_used(name: str, needed: set[str]) -> None:
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    if not needed <= flags:
        pytest.skip(f"this machine lacks {', '.join(sorted(needed - flags))}")
    if f"{name}\0".encode() not in library_path().read_bytes():
        pytest.skip(f"this build has no {name}: it needs GCC 11 or Clang 12")
    if name == "amx" and ctypes.CDLL(None).syscall(158, 0x1023, 18) != 0:  # arch_prctl, ARCH_REQ_XCOMP_PERM
        pytest.skip("the system does not let this process use tiles")
    assert name in available_isas()


@pytest.mark.parametrize("name", ["avx1024", "AVX512", "neon"])
def test_an_unknown_or_unsupported_isa_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in available_isas():
        pytest.skip(f"this machine has {name}")
    monkeypatch.setenv("BINARIZE_ISA", name)
    with pytest.raises(EnvironmentProblem, match=f"BINARIZE_ISA={name}.*scalar"):
        active_isa()
    with pytest.raises(EnvironmentProblem, match=f"(?s)BINARIZE_ISA={name}.*scalar"):
        InferenceSession(conv_model(make_case(channels=8, out_channels=8)), session_options())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads an ELF file")
@of_the_installed_library
def test_only_the_two_entry_points_are_exported() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    output = subprocess.run(
        [nm, "-D", "--defined-only", str(library_path())], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in output.stdout.splitlines()}
    assert names == {"RegisterCustomOps", "BinarizeRegisterCustomOps"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads an ELF file")
@of_the_installed_library
def test_the_library_does_not_link_onnxruntime() -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    output = subprocess.run([readelf, "-d", str(library_path())], capture_output=True, text=True, check=True)
    needed = [line for line in output.stdout.splitlines() if "NEEDED" in line]
    assert needed
    assert not any("onnxruntime" in line or "stdc++" in line for line in needed)


def test_inference_needs_neither_torch_nor_onnx() -> None:
    code = "import sys, binarize.runtime as r; r.active_isa(); print({*sys.modules} & {'torch', 'onnx'})"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "set()"


def test_one_options_object_serves_many_sessions() -> None:
    case = make_case(channels=64, out_channels=64)
    options = session_options()
    register(options)
    register(options)
    for _ in range(2):
        session = InferenceSession(conv_model(case), options)
        np.testing.assert_array_equal(session.run(["y"], feeds(case))[0], case.expected()[0])


def test_options_with_a_foreign_registration_get_a_clear_error() -> None:
    options = session_options()
    options.register_custom_ops_library(str(library_path()))
    with pytest.raises(UsageError, match="already"):
        InferenceSession(conv_model(make_case(channels=64, out_channels=64)), options)


def test_plain_onnxruntime_can_use_the_library() -> None:
    case = make_case(channels=64, out_channels=64)
    options = session_options()
    options.register_custom_ops_library(str(binarize.runtime.library_path()))
    session = onnxruntime.InferenceSession(conv_model(case), options)
    np.testing.assert_array_equal(session.run(["y"], feeds(case))[0], case.expected()[0])


def test_missing_files_and_wrong_arguments_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        InferenceSession(tmp_path / "nothing.onnx")
    with pytest.raises(UsageError, match="is a directory"):
        InferenceSession(str(tmp_path))
    with pytest.raises(UsageError, match="not int"):
        InferenceSession(3)  # type: ignore[arg-type]


def test_a_model_is_read_from_a_path(tmp_path: Path) -> None:
    case = make_case(channels=64, out_channels=64)
    path = tmp_path / "model.onnx"
    path.write_bytes(conv_model(case))
    for source in (path, str(path)):
        assert InferenceSession(source).run(["y"], feeds(case))[0].shape == (1, 6, 7, 64)


def test_an_old_onnxruntime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.17.3")
    with pytest.raises(EnvironmentProblem, match=r"1\.17\.3 is too old"):
        InferenceSession(conv_model(make_case(channels=64, out_channels=64)))


@of_the_installed_library
def test_a_missing_library_is_an_environment_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("binarize.runtime.library._library_name", lambda: "libnothing.so")
    with pytest.raises(EnvironmentProblem, match="not installed"):
        InferenceSession(conv_model(make_case(channels=64, out_channels=64)))


def test_threads_do_not_change_a_bit(isa: str) -> None:
    case = make_case(channels=256, out_channels=192, size=(23, 19), link=True, residual=True, slope=True, shift=True)
    one, *others = (run_kernel(case, isa, threads) for threads in THREADS)
    for threads, other in zip(THREADS[1:], others, strict=True):
        for name in ("y", "next_bits"):
            np.testing.assert_array_equal(one[name], other[name], err_msg=f"{name}, {threads} threads")


def test_one_session_serves_threads_at_once() -> None:
    """Kernels keep no state: concurrent runs of different shapes do not disturb each other."""
    cases = [make_case(channels=128, out_channels=64, size=(n, 17), link=True, residual=True, seed=1) for n in (5, 16)]
    session = InferenceSession(conv_model(cases[0]), session_options(2))
    fed = [feeds(case) for case in cases]
    expected = []
    for case in cases:  # the constants are those of the first case
        values = {**case.values, **{n: a for n, a in cases[0].values.items() if n not in feeds(case)}}
        expected.append(Case(case.conv, values).expected()[0])
    failures: list[int] = []

    def work(index: int) -> None:
        for _ in range(60):
            if not np.array_equal(session.run(["y"], fed[index])[0], expected[index]):
                failures.append(index)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def pack_model(x: np.ndarray) -> bytes:
    node = helper.make_node("Pack", ["x", "threshold"], ["bits"], domain="ai.binarize")
    inputs = {"x": x, "threshold": np.zeros((1, x.shape[3]), np.float32)}
    return model_bytes([node], inputs, {}, {"bits": TensorProto.UINT64})


def test_sessions_of_every_operator_are_made_and_run_at_once() -> None:
    conv = make_case(channels=128, out_channels=96, size=(20, 21), link=True, residual=True)
    values = activate_case((2, 30, 31, 70), 1, gate=True, residual=True, scalar=False)
    sums = activate_case((2, 30, 31, 70), 1, gate=True, residual=True, scalar=False, link=32)
    stem = test_int8_conv.make_case(shape=(2, 3, 32, 33), pool_shape=(3, 3), pool_strides=(2, 2), residual=True)
    x = np.random.default_rng(0).normal(size=(2, 40, 40, 32)).astype(np.float32)
    gate = gate_case(x.shape, 300, 290, 1) | {"x": x}
    models = {
        "BinaryConv2d": (conv_model(conv), feeds(conv)),
        "Activate": (activate_model(values, ("y", "next_bits")), fed(values)),
        "ActivateLink": (activate_model(sums, ("y", "next_bits")), fed(sums)),
        "Int8Conv2d": (stem.model(), stem.fed),
        "MaxPool": (pool_model("max", (3, 3), Conv(1), x, False), {"x": x}),
        "AveragePool": (pool_model("average", (3, 3), Conv(1), x, True), {"x": x}),
        "Place": (place_model(x, None, 3, 40), {"x": x}),
        "GatherChannels": (gather_model(x, None, [*range(0, 32, 2), *range(1, 32, 2)]), {"a": x}),
        "Gate": (gate_model(gate), {"x": x}),
        "Pack": (pack_model(x), {"x": x, "threshold": np.zeros((1, 32), np.float32)}),
    }
    alone = {name: InferenceSession(m, session_options()).run(None, f) for name, (m, f) in models.items()}

    def made_and_run(name: str) -> list[str]:
        model, data = models[name]
        session = InferenceSession(model, session_options(2))
        runs = [session.run(None, data) for _ in range(5)]
        return [name for run in runs for a, b in zip(run, alone[name], strict=True) if a.tobytes() != b.tobytes()]

    with ThreadPoolExecutor(6) as pool:
        assert [name for wrong in pool.map(made_and_run, [*models] * 4) for name in wrong] == []


def shape_of_outputs(case: Case, bits_shape: list) -> list[list]:
    """Output shapes ONNX Runtime knows before it runs."""
    model = onnx.load_from_string(conv_model(case))
    info = next(i for i in model.graph.input if i.name == "bits")
    info.CopyFrom(helper.make_tensor_value_info("bits", TensorProto.UINT64, bits_shape))
    session = InferenceSession(model.SerializeToString(), session_options())
    return [output.shape for output in session.get_outputs()]


def test_shape_inference_keeps_symbols() -> None:
    same = make_case(channels=64, out_channels=70)
    assert shape_of_outputs(same, ["N", "H", "W", 1]) == [["N", "H", "W", 70], ["N", "H", "W", 2]]
    strided = make_case(channels=64, out_channels=70, strides=(2, 2))
    assert shape_of_outputs(strided, ["N", 56, 57, 1]) == [["N", 28, 29, 70], ["N", 28, 29, 2]]
    assert shape_of_outputs(strided, ["N", "H", "W", 1])[0] == ["N", "ceil(H/2)", "ceil(W/2)", 70]
    valid = make_case(channels=64, out_channels=8, pads=(0, 0, 0, 0))
    assert shape_of_outputs(valid, [1, 9, 8, 1])[0] == [1, 7, 6, 8]
    assert shape_of_outputs(valid, [1, "H", "W", 1])[0] == [1, "(H-2)", "(W-2)", 8]
    assert all(not isinstance(d, int) or d > 0 for d in shape_of_outputs(valid, [None] * 4)[0])


def settle_shapes(model: onnx.ModelProto, data: dict[str, np.ndarray]) -> None:
    """The inputs' shapes become those of the data."""
    for info in model.graph.input:
        info.CopyFrom(helper.make_tensor_value_info(info.name, info.type.tensor_type.elem_type, data[info.name].shape))


@pytest.mark.parametrize("symbolic", [False, True])
def test_residual_written_in_place_is_correct(symbolic: bool) -> None:
    """The residual is a computed value without another reader, so y may take its memory."""
    case = make_case(channels=64, out_channels=64, size=(20, 20), link=True, residual=True, slope=True, outputs=("y",))
    model = onnx.load_from_string(conv_model(case))
    node = model.graph.node[0]
    node.input[6] = "computed"
    doubled = helper.make_node("Mul", ["residual", "two"], ["computed"])
    model.graph.node.insert(0, doubled)
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, dtype=np.float32), "two"))
    if not symbolic:
        settle_shapes(model, feeds(case))
    expected = Case(case.conv, {**case.values, "residual": 2 * case.values["residual"]}).expected()[0]
    for threads in THREADS:
        session = InferenceSession(model.SerializeToString(), session_options(threads))
        for _ in range(3):
            np.testing.assert_array_equal(session.run(["y"], feeds(case))[0], expected)


MAP_SIDE = 512


def chain_model(case: Case, convs: int, *, kept: bool = False) -> bytes:
    """A doubled residual, convs that add it up one after the other, an Activate, and one number of what comes out.

    Args:
        kept: the doubled residual is read again at the end.
    """
    nodes = [helper.make_node("Add", ["residual", "residual"], ["y0"])]
    for i in range(convs):
        node = conv_node(case)
        node.name = f"conv{i}"
        node.input[6], node.output[0] = f"y{i}", f"y{i + 1}"
        nodes.append(node)
    if convs:
        act = ["gate", "scale", "bias", "zero_map", "slope", "shift", "next_threshold"]
        nodes.append(helper.make_node("Activate", [f"y{convs}", *act], ["a"], domain="ai.binarize", channels=64))
    last = "a" if convs else "y0"
    nodes.append(helper.make_node("ReduceMax", [last], ["top"]))
    if kept:
        nodes.append(helper.make_node("Sub", ["y0", "top"], ["beside"]))
        nodes.append(helper.make_node("ReduceMax", ["beside"], ["both"]))
    data = feeds(case)
    constants = {n: a for n, a in case.values.items() if n not in data} | {"zero_map": ZERO_MAP}
    text = model_bytes(nodes, data, constants, {"both" if kept else "top": TensorProto.FLOAT})
    model = onnx.load_from_string(text)
    settle_shapes(model, data)  # a map is written in place of one that is known to be as large
    return bytes(model.SerializeToString())


def give_back_freed_memory() -> None:
    """What earlier tests freed may still be mapped: a map that takes its place would not be seen to grow anything."""
    with contextlib.suppress(OSError, AttributeError):  # glibc's own
        ctypes.CDLL(None).malloc_trim(0)


def grown_by(model: bytes, data: dict[str, np.ndarray], map_bytes: int) -> float:
    """How much memory a run takes at most, in maps of that size."""
    options = session_options()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # so that freed maps are given back
    session = InferenceSession(model, options)
    session.run(None, data)
    give_back_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    def kilobytes(name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1])

    before = kilobytes("VmRSS")
    session.run(None, data)
    return (kilobytes("VmHWM") - before) * 1024 / map_bytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of memory")
@of_the_installed_library
def test_residuals_are_updated_in_place() -> None:
    """One map lives through a chain of convs and an Activate; a second one where the first is read again later."""
    size = (MAP_SIDE, MAP_SIDE)
    case = make_case(
        channels=64, out_channels=64, kernel=(1, 1), pads=(0,) * 4, size=size, residual=True, outputs=("y",)
    )
    size = feeds(case)["residual"].nbytes
    grown = {convs: grown_by(chain_model(case, convs), feeds(case), size) for convs in (0, 3)}
    assert grown[0] == pytest.approx(1, abs=0.25)
    assert grown[3] == pytest.approx(1, abs=0.25)
    assert grown_by(chain_model(case, 3, kept=True), feeds(case), size) == pytest.approx(2, abs=0.25)


def growing_model(a: np.ndarray, kept: bool = False) -> bytes:
    """A map of 56 channels grows by 8 that are made of it. The half-filled map may be `kept`, read again at the end."""
    parameters = {n: np.ones(1, np.float32) for n in ("scale", "slope")}
    parameters |= {n: np.zeros(1, np.float32) for n in ("bias", "shift", "next_threshold")}
    act = ["half", "gate", "scale", "bias", "none", "slope", "shift", "next_threshold"]

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name=output, domain="ai.binarize", **attributes)

    nodes = [
        node("Place", ["a", "none"], "half", first=0, channels=64),
        node("Activate", act, "new", channels=8),
        node("Place", ["new", "half"], "whole", first=56, channels=64),
        helper.make_node("ReduceMean", ["whole", "axes"], ["mean"]),
    ]
    if kept:
        nodes.append(helper.make_node("Sub", ["half", "mean"], ["beside"]))
        nodes.append(helper.make_node("ReduceMean", ["beside", "axes"], ["both"]))
    constants = parameters | {"none": ZERO_MAP, "gate": ZERO_MAP + 1, "axes": np.array([1, 2])}
    model = onnx.load_from_string(
        model_bytes(nodes, {"a": a}, constants, {("both" if kept else "mean"): TensorProto.FLOAT})
    )
    settle_shapes(model, {"a": a})
    return bytes(model.SerializeToString())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of memory")
@of_the_installed_library
def test_a_growing_map_lies_in_one_memory_while_nobody_reads_a_stage_later() -> None:
    a = np.random.default_rng(0).normal(size=(1, MAP_SIDE, MAP_SIDE, 56)).astype(np.float32)
    size = a.nbytes * 64 // 56
    assert grown_by(growing_model(a), {"a": a}, size) == pytest.approx(1.125, abs=0.25)
    assert grown_by(growing_model(a, kept=True), {"a": a}, size) == pytest.approx(2.25, abs=0.4)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_growing_map_has_the_values_of_its_parts(threads: int, kept: bool) -> None:
    a = np.random.default_rng(0).normal(size=(1, 40, 41, 56)).astype(np.float32)
    half = np.concatenate([a, np.zeros_like(a[..., :8])], 3)
    mean = np.concatenate([a, a[..., :8]], 3).mean((1, 2), keepdims=True)
    got = InferenceSession(growing_model(a, kept), session_options(threads)).run(None, {"a": a})[0]
    wanted = (half - mean).mean((1, 2), keepdims=True) if kept else mean
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_residual_that_is_also_the_link_is_not_overwritten_early() -> None:
    """Link and residual are one tensor: its second reader keeps y from taking its memory."""
    case = make_case(channels=64, out_channels=64, size=(20, 20), strides=(1, 1), link=True, outputs=("y",))
    node = conv_node(case)
    node.input[4] = node.input[6] = "computed"
    model = onnx.load_from_string(conv_model(case))
    model.graph.node[0].CopyFrom(node)
    model.graph.node.insert(0, helper.make_node("Neg", ["link"], ["computed"]))
    expected = Case(case.conv, {**case.values, "link": -case.values["link"], "residual": -case.values["link"]})
    session = InferenceSession(model.SerializeToString(), session_options(2))
    np.testing.assert_array_equal(session.run(["y"], feeds(case))[0], expected.expected()[0])


def test_a_chain_of_layers_passes_bits_on() -> None:
    """Pack, then two convs of which the second reads the bits the first one wrote."""
    first = make_case(channels=64, out_channels=96, outputs=("next_bits",), seed=1)
    second = make_case(channels=96, out_channels=40, outputs=("y",), seed=2)
    model = onnx.load_from_string(conv_model(first))
    node = conv_node(second)
    renamed = {"bits": "next_bits", **{n: f"second_{n}" for n in second.values if n != "bits"}}
    for index, name in enumerate(node.input):
        node.input[index] = renamed[name]
    node.name = "second"
    model.graph.node.append(node)
    for name, value in second.values.items():
        if name != "bits":
            model.graph.initializer.append(numpy_helper.from_array(value, f"second_{name}"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4))
    got = InferenceSession(model.SerializeToString(), session_options(2)).run(None, feeds(first))[0]
    expected = Case(second.conv, {**second.values, "bits": first.expected()[1]}).expected()[0]
    np.testing.assert_array_equal(got, expected)
