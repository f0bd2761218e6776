"""Static int8 of whole float nets and of binary nets' float ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

import binarize
from binarize.api import resolve_config
from binarize.bench.float_onnx import float_onnx
from binarize.bench.profile import profile
from binarize.errors import UnsupportedModelError
from binarize.exporting import int8_stem
from binarize.exporting.quantize import _folded, batches_of, float_ends, quantize_all, quantize_ends
from binarize.runtime import InferenceSession
from tests.models import EveryConv, conv_bn, randomized

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return randomized(EveryConv()).eval()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((8, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def float_model(net: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    float_onnx(net, path, (torch.randn(2, *SHAPE),))
    return onnx.load(path)


@pytest.fixture(scope="module")
def binary_model(net: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("binary") / "binary.onnx"
    binarize.export(binarize.apply(net, torch.randn(2, *SHAPE)).eval(), path, check=False)
    return onnx.load(path)


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    (scores,) = InferenceSession(model.SerializeToString()).run(None, {"input": images})
    assert isinstance(scores, np.ndarray)
    return scores


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """What ONNX Runtime's own calibration reads."""

    def __init__(self, feeds: Iterator[Mapping[str, np.ndarray]]) -> None:
        self.feeds = feeds

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self.feeds, None)


def test_the_whole_net_is_what_onnx_runtimes_own_tool_makes(
    float_model: onnx.ModelProto, images: np.ndarray, tmp_path: Path
) -> None:
    ours = quantize_all(float_model, batches_of({"input": images}))
    onnx.save(_folded(float_model), tmp_path / "folded.onnx")
    reader = Reader(batches_of({"input": images}))
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(tmp_path / "folded.onnx", tmp_path / "theirs.onnx", reader, **kinds)
    theirs = onnx.load(tmp_path / "theirs.onnx")
    assert Counter(n.op_type for n in ours.graph.node) == Counter(n.op_type for n in theirs.graph.node)
    np.testing.assert_array_equal(run(ours, images), run(theirs, images))
    true = run(float_model, images)
    assert np.abs(run(ours, images) - true).max() < 0.2 * np.abs(true).max()


def test_only_the_ends_of_a_net_change(binary_model: onnx.ModelProto, images: np.ndarray, tmp_path: Path) -> None:
    ends = [node.input[1] for node in float_ends(binary_model)]
    assert ends == ["stem.0.weight", "head.weight"]
    before = Counter(n.op_type for n in binary_model.graph.node)
    quantized = quantize_ends(binary_model, batches_of({"input": images}))
    after = Counter(n.op_type for n in quantized.graph.node)
    assert after - before == {"Int8Conv2d": 1, "QuantizeLinear": 2, "DequantizeLinear": 4}
    assert before - after == {"Conv": 1, "MaxPool": 1, "Transpose": 1, "Activate": 1}, "the stem is one operator"
    assert len(quantized.functions) == len(binary_model.functions), "the file still carries its operators"
    onnx.save(quantized, tmp_path / "q.onnx")
    ran = Counter(node.op for node in profile({"q": tmp_path / "q.onnx"}, runs=2)["q"].nodes)
    assert (ran["Int8Conv2d"], ran["QGemm"], ran["Gemm"]) == (1, 1, 0)
    assert (ran["Conv"], ran["Gate"]) == (0, 1), "the squeeze-excite gate between binary layers stays float"
    assert run(quantized, images[:3]).shape == (3, 5), "the batch stays symbolic"


@pytest.mark.parametrize("stream", ["float32", "float16"])
def test_a_pool_behind_slopes_below_zero_is_part_of_the_stem(
    images: np.ndarray, stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained stem has some: its values do not rise with its sums, so that no pass moves the pool before them."""
    torch.manual_seed(0)
    example = torch.from_numpy(images[:2])
    config = resolve_config("el", None, [f"export.stream={stream}"])
    model = binarize.apply(randomized(EveryConv()).eval(), example, config=config).eval()
    slopes = [parameter for name, parameter in model.named_parameters() if name.startswith("stem") and "slope" in name]
    slopes[0].data[:3] = torch.tensor([-0.5, -2.0, 1.5])
    binarize.export(model, tmp_path / "net.onnx", check=False)
    net = onnx.load(tmp_path / "net.onnx")

    joined = quantize_ends(net, batches_of({"input": images}))
    (node,) = [node for node in joined.graph.node if node.op_type == "Int8Conv2d"]
    assert {a.name: a.i for a in node.attribute}["pools_values"] == 1 and all(node.output)
    kinds = {node.op_type for node in joined.graph.node}
    assert not kinds & {"MaxPool", "Pack", "Transpose"}

    monkeypatch.setattr(int8_stem, "_take_map_pool", lambda *_: None)
    apart = quantize_ends(net, batches_of({"input": images}))
    assert {"MaxPool", "Pack"} <= {node.op_type for node in apart.graph.node}
    np.testing.assert_array_equal(run(joined, images), run(apart, images))


@pytest.mark.parametrize("number", ["bias", "slope", "shift", "next_threshold"])
def test_an_activation_with_computed_numbers_is_no_part_of_the_stem(binary_model: onnx.ModelProto, number: str) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(binary_model)
    activate = next(node for node in changed.graph.node if node.op_type == "Activate")
    activate.input[{"bias": 3, "slope": 5, "shift": 6, "next_threshold": 7}[number]] = "computed"
    stems = [
        int8_stem.find_stem(model, next(node for node in model.graph.node if node.op_type == "Conv"))
        for model in (binary_model, changed)
    ]
    assert [stem is not None and stem.activate is not None for stem in stems] == [True, False]


def test_a_stem_makes_no_map_that_nobody_reads(images: np.ndarray, tmp_path: Path) -> None:
    """Where a net has no links, nothing but its signs is read of the map behind the stem's pool."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(conv_bn(3, 16), torch.nn.MaxPool2d(2), conv_bn(16, 16), conv_bn(16, 16))
    net = torch.nn.Sequential(*net, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 5))
    config = resolve_config("el", None, ["link.kind=none"])
    model = binarize.apply(randomized(net).eval(), torch.from_numpy(images[:2]), config=config).eval()
    slope = next(parameter for name, parameter in model.named_parameters() if "slope" in name)
    slope.data[:3] = -0.5
    binarize.export(model, tmp_path / "net.onnx", check=False)
    quantized = quantize_ends(onnx.load(tmp_path / "net.onnx"), batches_of({"input": images}))
    (stem,) = [node for node in quantized.graph.node if node.op_type == "Int8Conv2d"]
    assert {a.name: a.i for a in stem.attribute}["pools_values"] == 1
    assert stem.output[0] == "" and stem.output[1]
    assert run(quantized, images).shape == (8, 5)


def test_ranges_cover_all_batches(binary_model: onnx.ModelProto, images: np.ndarray) -> None:
    """The input's scale is that of the widest image, wherever it comes."""
    for order in (1, -1):
        scaled = (images * np.linspace(1, 4, len(images), dtype=np.float32)[:, None, None, None])[::order]
        quantized = quantize_ends(binary_model, batches_of({"input": scaled}, size=3))
        factor = next(t for t in quantized.graph.initializer if t.name == "stem.0.factor")
        span = max(scaled.max(), 0) - min(scaled.min(), 0)
        assert onnx.numpy_helper.to_array(factor) == pytest.approx(255 / span, rel=1e-3)


def test_nothing_to_quantize_is_an_error(binary_model: onnx.ModelProto, images: np.ndarray) -> None:
    empty = onnx.ModelProto()
    empty.CopyFrom(binary_model)
    for node in [node for node in empty.graph.node if node.op_type in ("Conv", "Gemm")]:
        node.op_type = "Unknown"
    with pytest.raises(UnsupportedModelError, match="no float layer"):
        quantize_ends(empty, batches_of({"input": images}))
