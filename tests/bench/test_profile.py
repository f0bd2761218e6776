"""The profile of real files, and layers of different files joined by module path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import binarize
from binarize.bench.float_onnx import float_onnx
from binarize.bench.int8 import int8_onnx
from binarize.bench.layers import OTHER, LayerTime, layer_times, layers_by_name, slower_layers
from binarize.bench.profile import Profile, profile
from binarize.errors import UnsupportedModelError
from binarize.exporting import write_onnx
from binarize.exporting.quantize import batches_of, quantize_ends
from binarize.runtime.library import supported_isas
from tests.models import EveryConv

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("profile")
    found = {name: folder / f"{name}.onnx" for name in ("binary", "float", "int8")}
    model = EveryConv().eval()
    float_onnx(model, found["float"], (torch.randn(2, *SHAPE),))
    int8_onnx(found["float"], found["int8"])
    binarize.export(binarize.apply(model, torch.randn(2, *SHAPE)).eval(), found["binary"], check=False)
    return found


def whole(found: Profile) -> np.ndarray:
    """Milliseconds of each run, all nodes together."""
    return np.sum([node.times for node in found.nodes], axis=0)


def test_every_layer_is_found_in_every_file(files: dict[str, Path]) -> None:
    profiles = profile(files, runs=3)
    layers = {layer.layer: layer for layer in layer_times(profiles, files)}
    convs = {name for name, module in EveryConv().named_modules() if isinstance(module, torch.nn.Conv2d)}
    gated = {"inverted.body.2.fc1", "inverted.body.2.fc2"}  # one operator, `Gate`: with all else, in every file
    assert set(layers) == convs - gated | {"head", OTHER} and gated < convs
    for layer in layers.values():
        assert set(layer.milliseconds) == set(files), layer.layer
    assert layers["basic.0.conv1"].op == "BinaryConv2d" and layers["stem.0"].op == "Conv"
    for name, found in profiles.items():
        total = np.sum([layer.times[name] for layer in layers.values()], axis=0)
        assert total == pytest.approx(whole(found)) and total.shape == (3,)


def test_a_profile_sums_up_by_operator_and_names_the_kernels(files: dict[str, Path]) -> None:
    found = profile({"binary": files["binary"]}, runs=3, batch=2)["binary"]
    rows = {row["op"]: row for row in found.by_operator()}
    binary = [node for node in onnx.load(files["binary"]).graph.node if node.op_type == "BinaryConv2d"]
    assert rows["BinaryConv2d"]["nodes"] == len(binary)
    assert rows["BinaryConv2d"]["kernel"].startswith("ai.binarize ")
    assert not rows["Conv"]["kernel"].startswith("ai.binarize")
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert next(node for node in found.nodes if node.op == "Conv").shape == (2, 16, 32, 32)
    times = [row["milliseconds"] for row in found.by_operator()]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("isa", ["scalar", None])
def test_a_profile_names_the_instruction_set_that_ran(
    files: dict[str, Path], isa: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forced one; the best that the machine has where none is."""
    if isa is None:
        monkeypatch.delenv("BINARIZE_ISA", raising=False)
    else:
        monkeypatch.setenv("BINARIZE_ISA", isa)  # read when a session is created
    found = profile({"binary": files["binary"]}, runs=1)["binary"]
    kernels = {node.kernel for node in found.nodes if node.op in ("BinaryConv2d", "Activate", "Pack")}
    best = next(name for name in supported_isas() if name not in ("amx", "avxvnni"))  # these have int8 kernels alone
    assert kernels == {f"ai.binarize {isa or best}"}


def test_an_int8_stem_alone_runs_on_amx_and_avx_vnni(files: dict[str, Path], tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    write_onnx(quantize_ends(onnx.load(files["binary"]), batches_of({"input": images})), tmp_path / "ends.onnx")
    found = profile({"ends": tmp_path / "ends.onnx"}, runs=1)["ends"]
    kernels = {node.op: node.kernel for node in found.nodes}
    assert kernels["Int8Conv2d"] == f"ai.binarize {supported_isas()[0]}"
    assert kernels["BinaryConv2d"] not in ("ai.binarize amx", "ai.binarize avxvnni")


def test_our_operators_are_told_from_standard_ones_of_the_same_name(files: dict[str, Path]) -> None:
    found = profile({"binary": files["binary"]}, runs=2)["binary"]
    nodes = {node.name: node for node in onnx.load(files["binary"]).graph.node}
    ours = {node.name for node in found.nodes if node.kernel.startswith("ai.binarize ")}
    assert ours == {name for name, node in nodes.items() if node.domain == "ai.binarize"}


def test_an_int8_stem_is_the_layer_it_was(files: dict[str, Path], tmp_path: Path) -> None:
    """And a layer that the first file lacks is not lost."""
    ends = tmp_path / "ends.onnx"
    images = np.random.default_rng(0).random((8, *SHAPE), dtype=np.float32)
    write_onnx(quantize_ends(onnx.load(files["binary"]), batches_of({"input": images})), ends)
    both = {"ends": ends, "float": files["float"]}
    profiles = profile(both, runs=3)
    layers = {layer.layer: layer for layer in layer_times(profiles, both)}
    assert layers["stem.0"].op == "Int8Conv2d" and set(layers["stem.0"].milliseconds) == set(both)
    for name, found in profiles.items():
        total = np.sum([layer.times[name] for layer in layers.values() if name in layer.times], axis=0)
        assert total == pytest.approx(whole(found))
    lacking = Profile(tuple(node for node in profiles["ends"].nodes if node.name != "stem.0"))
    rest = layer_times({"ends": lacking, "float": profiles["float"]}, both)
    assert "stem.0" not in {layer.layer for layer in rest}
    assert np.sum([layer.times["float"] for layer in rest], axis=0) == pytest.approx(whole(profiles["float"]))


def test_slower_layers_are_named() -> None:
    layers = [
        LayerTime("fast", "BinaryConv2d", {"binary": (1.0, 1.0, 9.0), "float": (5.0,)}),
        LayerTime("slow", "BinaryConv2d", {"binary": (2.0,), "float": (1.0,)}),
        LayerTime("noise", "Conv", {"binary": (1.01,), "float": (1.0,)}),
        LayerTime("new", "BinaryConv2d", {"binary": (2.0,)}),
    ]
    assert [layer.layer for layer in slower_layers(layers, "float")] == ["slow"]
    assert [layer.speedup("float") for layer in layers] == [5.0, 0.5, pytest.approx(0.99, abs=0.01), None]


def test_layers_of_files_from_other_exporters() -> None:
    """Anonymous weights behind a scope, as torch's older exporter writes them; anonymous nodes stay themselves."""
    weight = numpy_helper.from_array(np.zeros((4, 4, 1, 1), np.float32), "onnx::Conv_7")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "onnx::Conv_7"], ["a"], "/layer1/layer1.0/conv1/Conv"),
            helper.make_node("Relu", ["a"], ["b"], "/layer1/layer1.0/relu/Relu"),
            helper.make_node("Conv", ["b", "onnx::Conv_7"], ["c"], "Conv_3"),
        ],
        "g",
        [value("x", TensorProto.FLOAT, [1, 4, 2, 2])],
        [value("c", TensorProto.FLOAT, [1, 4, 2, 2])],
        [weight],
    )
    found = layers_by_name(helper.make_model(graph))
    assert found["/layer1/layer1.0/conv1/Conv"] == found["a"] == found["b"] == "layer1.0.conv1"
    assert found["Conv_3"] == "Conv_3"
    assert "/layer1/layer1.0/relu/Relu" not in found, "a Relu that was not fused is a node of its own"


def test_int8_is_not_made_from_a_binary_file(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="binary model") as caught:
        int8_onnx(files["binary"], tmp_path / "no.onnx")
    assert "--against" in str(caught.value)
    with pytest.raises(UnsupportedModelError, match="the images are"):
        int8_onnx(files["float"], tmp_path / "no.onnx", np.zeros((2, 3, 16, 16), np.float32))
