"""Comparing real ONNX files: float and binary of one small network."""

from __future__ import annotations

import copy
import json
import os
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import binarize
from binarize.bench import Benchmark, Contender, Latency, benchmark
from binarize.bench.accuracy import module_accuracy, onnx_accuracy
from binarize.bench.compare import file_size
from binarize.bench.float_onnx import float_onnx
from binarize.bench.int8 import int8_onnx
from binarize.bench.machine import cpu_name, one_per_core_first, pinned
from binarize.bench.sessions import image_shape, input_shape, open_session, random_feeds
from binarize.errors import UnsupportedModelError, UsageError
from binarize.training.data import TensorImages
from tests.models import EveryConv

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return EveryConv().eval()


@pytest.fixture(scope="module")
def float_file(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "float.onnx"
    assert float_onnx(model, path, (torch.randn(2, *SHAPE),)) == path.stat().st_size
    return path


@pytest.fixture(scope="module")
def binary_file(model: torch.nn.Module, float_file: Path) -> Path:
    path = float_file.with_name("binary.onnx")
    binarize.export(binarize.apply(model, torch.randn(2, *SHAPE)).eval(), path)
    return path


class Writes(torch.nn.Module):
    """Reads a view of a map behind which it has changed the map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.norm(self.conv(x))
        rows = y.view(y.shape[0], -1)
        y.relu_()
        y += 1
        return y.mean((2, 3)), rows.sum(1)


def test_the_float_file_of_code_that_writes_in_place_is_equal(tmp_path: Path) -> None:
    net, x = Writes().eval(), torch.randn(2, *SHAPE)
    float_onnx(net, tmp_path / "writes.onnx", (x,))
    got = open_session(tmp_path / "writes.onnx", 1).run(None, {"input": x.numpy()})
    for wanted, found in zip(net(x), got, strict=True):
        np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_the_float_file_computes_the_model_for_any_batch(model: torch.nn.Module, float_file: Path) -> None:
    session = open_session(float_file, threads=1)
    assert input_shape(session, batch=5) == (5, *SHAPE)
    for batch in (1, 5):
        feeds = random_feeds(session, batch)
        (found,) = session.run(None, feeds)
        with torch.no_grad():
            wanted = model(torch.from_numpy(feeds["input"])).numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_the_float_file_is_standard_and_carries_no_notes(float_file: Path) -> None:
    proto = onnx.load(float_file)
    assert {node.domain for node in proto.graph.node} == {""}
    assert all(not node.metadata_props and not node.doc_string for node in proto.graph.node)
    assert str(Path(__file__).parent).encode() not in float_file.read_bytes()


def test_two_files_side_by_side(float_file: Path, binary_file: Path) -> None:
    found = benchmark({"binary": binary_file, "float": float_file}, threads=1, runs=20, batch=2)
    assert [c.name for c in found.contenders] == ["binary", "float"]
    assert [c.size for c in found.contenders] == [f.stat().st_size for f in (binary_file, float_file)]
    assert all(c.latency.runs == 20 and c.latency.median > 0 for c in found.contenders)
    assert json.loads(json.dumps(found.to_dict()))["machine"]["cpu"] == cpu_name()
    assert len(found.rows()) == 2 and len(found.rows()[0]) == len(found.columns())
    assert len(found.verdicts()) == 1


def made_up(name: str, size: int, milliseconds: float, *ratio: float) -> Contender:
    return Contender(name, Path(name), size, Latency(milliseconds, milliseconds, milliseconds, 20, *ratio))


@pytest.mark.parametrize(
    "size, ratio, verdict",
    [
        (100, (2.0, 1.6, 2.5), "SLOWER than float, 0.50x as fast (95 % interval 0.40x to 0.62x), and 10.0x smaller."),
        (2000, (0.25, 0.2, 0.5), "4.00x as fast as float (95 % interval 2.00x to 5.00x), and 2.0x larger."),
        (
            1000,
            (0.8, 0.7, 1.1),
            "as fast as float within this run's noise (95 % interval 0.91x to 1.43x), and 1.0x smaller.",
        ),
    ],
)
def test_verdicts_say_when_binary_is_slower(size: int, ratio: tuple[float, ...], verdict: str) -> None:
    found = Benchmark((made_up("binary", size, 1.0, 1, 1, 1), made_up("float", 1000, 1.0, *ratio)), {}, 1, (), 1, 20)
    assert found.verdicts() == [f"binary is {verdict}"]


def test_threads_that_had_to_share_cores_are_spoken_of() -> None:
    two = (made_up("binary", 100, 1.0, 1, 1, 1), made_up("float", 1000, 1.0, 2.0, 1.6, 2.5))
    assert len(Benchmark(two, {"cores": "8"}, 8, (), 1, 20).verdicts()) == 1
    assert Benchmark(two, {"cores": "2"}, 8, (), 1, 20).verdicts()[1].startswith("8 threads shared 2 cores")


def test_accuracies_of_module_and_file_agree(model: torch.nn.Module, float_file: Path) -> None:
    images, labels = torch.randn(24, *SHAPE), torch.arange(24) % 5
    batches = [(images[:16], labels[:16]), (images[16:], labels[16:])]
    torch_found = module_accuracy("float", model, batches, labelled(labels, "abcde"))
    onnx_found = onnx_accuracy(open_session(float_file, 1), batches, labelled(labels, "abcde"))
    assert torch_found.top1 == onnx_found.top1
    assert torch_found.images == onnx_found.images == 24


def labelled(labels: torch.Tensor, classes: Sequence[str]) -> TensorImages:
    return TensorImages(torch.zeros(len(labels), *SHAPE, dtype=torch.uint8), labels, classes)


@pytest.mark.parametrize("classes, fits", [("abcde", True), ("abce", False), ("abcdef", False), ("0123", True)])
def test_labels_must_count_the_models_classes(
    model: torch.nn.Module, float_file: Path, classes: str, fits: bool
) -> None:
    """A folder that lacks the class d would call e the fourth; numbers stay what they are."""
    images, labels = torch.randn(8, *SHAPE), torch.arange(8) % 4
    batches, dataset = [(images, labels)], labelled(labels, classes)
    for measure in (
        lambda: onnx_accuracy(open_session(float_file, 1), batches, dataset),
        lambda: module_accuracy("float", model, batches, dataset),
    ):
        if fits:
            assert measure().images == 8
            continue
        with pytest.raises(UsageError, match=f"has {len(classes)} classes, the model 5 outputs"):
            measure()


def test_a_file_that_takes_another_float_type_is_measured(
    model: torch.nn.Module, float_file: Path, tmp_path: Path
) -> None:
    proto = onnx.load(float_file)
    entry = proto.graph.input[0]
    for node in proto.graph.node:
        node.input[:] = ["widened" if name == entry.name else name for name in node.input]
    proto.graph.node.insert(0, onnx.helper.make_node("Cast", [entry.name], ["widened"], to=onnx.TensorProto.FLOAT))
    entry.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    images, labels = torch.randn(16, *SHAPE), torch.arange(16) % 5
    batches, dataset = [(images, labels)], labelled(labels, "abcde")
    found = onnx_accuracy(open_session(proto.SerializeToString(), 1), batches, dataset)
    assert found.top1 == module_accuracy("float", model, batches, dataset).top1
    entry.type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(UnsupportedModelError, match="not a tensor of floats"):
        onnx_accuracy(open_session(proto.SerializeToString(), 1), batches, dataset)


def test_answers_that_are_no_numbers_are_no_accuracy(model: torch.nn.Module) -> None:
    broken = copy.deepcopy(model)
    norm = next(m for m in broken.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.running_var.fill_(-1)
    images, labels = torch.randn(4, *SHAPE), torch.zeros(4, dtype=torch.long)
    with pytest.raises(UnsupportedModelError, match="gives NaN"):
        module_accuracy("float", broken, [(images, labels)], labelled(labels, "abcde"))


def test_what_takes_no_images_says_so() -> None:
    entry = types.SimpleNamespace(name="x", shape=["n", 10], type="tensor(float)")
    with pytest.raises(UnsupportedModelError, match="not images"):
        image_shape(types.SimpleNamespace(get_inputs=lambda: [entry]))


@pytest.mark.parametrize("batch", [1, 3, 24, 64])
def test_a_file_of_a_fixed_batch_is_measured_whole(model: torch.nn.Module, float_file: Path, batch: int) -> None:
    proto = onnx.load(float_file)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    session = open_session(proto.SerializeToString(), 1)
    images, labels = torch.randn(40, *SHAPE), torch.arange(40) % 5
    batches = [(images[:16], labels[:16]), (images[16:], labels[16:])]
    dataset = labelled(labels, "abcde")
    found = onnx_accuracy(session, batches, dataset)
    assert (found.top1, found.images) == (module_accuracy("float", model, batches, dataset).top1, 40)


def test_files_are_compared_on_as_many_images(float_file: Path, tmp_path: Path) -> None:
    proto = onnx.load(float_file)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(proto, tmp_path / "four.onnx")
    files = {"four": tmp_path / "four.onnx", "any": float_file}
    with pytest.raises(UsageError, match="four 4, any 1") as caught:
        benchmark(files, runs=20)
    assert caught.value.hint == "--batch 4"
    with pytest.raises(UsageError, match="takes 4 images at a time, not 2"):
        benchmark(files, runs=20, batch=2)
    assert benchmark(files, runs=20, batch=4).batch == 4
    alone = benchmark({"four": files["four"]}, runs=20)
    median = alone.contenders[0].latency.median
    assert alone.batch == 4 and alone.rows()[0][4] == f"{4000 / median:.0f}"
    int8_onnx(files["four"], tmp_path / "int8.onnx")
    assert open_session(tmp_path / "int8.onnx", 1).run(None, {"input": np.zeros((4, *SHAPE), np.float32)})
    with pytest.raises(UsageError, match="there are 3"):
        int8_onnx(files["four"], tmp_path / "int8.onnx", np.zeros((3, *SHAPE), np.float32))


def test_files_that_cannot_be_timed(tmp_path: Path, float_file: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        benchmark({"none": tmp_path / "none.onnx"})
    with pytest.raises(UsageError, match="is a folder"):
        benchmark({"parts": tmp_path})
    proto = onnx.load(float_file)
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(proto, tmp_path / "symbolic.onnx")
    with pytest.raises(UnsupportedModelError, match="only its first size"):
        benchmark({"symbolic": tmp_path / "symbolic.onnx"})


def test_external_data_counts(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"12")
    assert file_size(tmp_path / "m.onnx") == 2
    (tmp_path / "m.onnx.data").write_bytes(b"345")
    assert file_size(tmp_path / "m.onnx") == 5


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_pinning_is_undone() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cores:
        assert os.sched_getaffinity(0) == set(cores) and len(cores) == 1
    assert os.sched_getaffinity(0) == before
    with pinned(100_000) as cores:
        assert cores == ()


def test_hardware_threads_of_one_core_come_last(tmp_path: Path) -> None:
    for thread, siblings in {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}.items():
        folder = tmp_path / f"cpu{thread}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert one_per_core_first([0, 1, 2, 3], tmp_path) == [0, 2, 1, 3]
    assert one_per_core_first([1, 2, 3], tmp_path) == [1, 2, 3]
    assert one_per_core_first([4, 5], tmp_path) == [4, 5]
