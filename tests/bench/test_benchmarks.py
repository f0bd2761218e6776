"""The tools in `benchmarks`: their networks and layers are what they say, and the page says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import layer_models, records, render
from benchmarks.kernels import Layer
from benchmarks.peers import openvino_name
from benchmarks.zoo import NETWORKS
from binarize.bench.race import Finish
from binarize.bench.timing import Latency
from binarize.errors import EnvironmentProblem
from binarize.runtime import InferenceSession
from examples.mobilenet_v1 import mobilenet_v1


def test_mobilenet_v1_is_the_papers() -> None:
    """Table 8 of the paper: 569 million multiply-adds, 4.2 million parameters."""
    model = mobilenet_v1().eval()
    assert sum(p.numel() for p in model.parameters()) == 4_231_976
    macs = 0

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        macs += output[0, 0].numel() * sum(p.numel() for p in module.parameters() if p.dim() == 4)

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert round((macs + 1024 * 1000) / 1e6) == 569


def test_a_binary_layer_computes_its_convolution() -> None:
    layer = Layer(3, 64, 70, 5, stride=2)
    model = layer_models.binary_chain(layer, 1)
    x = np.random.default_rng(3).standard_normal((1, 64, 5, 5)).astype(np.float32)
    (found,) = InferenceSession(model.SerializeToString()).run(None, {"x": x})
    constants = {t.name: np.asarray(layer_models.numpy_helper.to_array(t)) for t in model.graph.initializer}
    bits = np.unpackbits(constants["weight_0"].view(np.uint8), axis=-1, bitorder="little")
    signs = torch.from_numpy(bits.astype(np.float32) * 2 - 1).permute(0, 3, 1, 2)
    ones = torch.where(torch.from_numpy(x) > 0, 1.0, -1.0)
    wanted = torch.nn.functional.conv2d(ones, signs, stride=2, padding=1)
    scale, bias = (torch.tensor(constants[name])[:, None, None] for name in ("scale_0", "bias_0"))
    np.testing.assert_allclose(found, (wanted * scale + bias).numpy(), rtol=1e-5, atol=1e-4)


def test_a_chain_goes_there_and_back() -> None:
    x = np.zeros((1, 64, 4, 4), np.float32)
    for links, channels in ((1, 128), (2, 64), (5, 128)):
        model = layer_models.binary_chain(Layer(1, 64, 128, 4), links)
        assert sum(node.op_type == "BinaryConv2d" for node in model.graph.node) == links
        (found,) = InferenceSession(model.SerializeToString()).run(None, {"x": x})
        assert found.shape == (1, channels, 4, 4)


def test_openvino_computes_the_same_shapes() -> None:
    pytest.importorskip("openvino")
    from benchmarks.openvino_nets import build

    assert list(build(openvino_name(Layer(3, 64, 128, 8, stride=2), 1)).output(0).shape) == [1, 128, 4, 4]
    assert list(build("bireal18").output(0).shape) == list(build("binary_resnet50").output(0).shape) == [1, 1000]


def test_results_replace_their_own_row_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    found = {
        "fine": Finish(Latency(1.0, 0.9, 1.23456, 20, 1.0, 1.0, 1.0), 3, 2),
        "lost": EnvironmentProblem("skipped: not installed"),
    }
    for subject, threads in (("b", 1), ("a", 2), ("a", 1), ("b", 1)):
        records.save("kind", subject, threads, {"contenders": records.finishes(found)})
    rows = json.loads((tmp_path / "kind.json").read_text())
    assert [(row["subject"], row["threads"]) for row in rows] == [("a", 1), ("a", 2), ("b", 1)]
    assert rows[0]["contenders"]["fine"]["p90"] == 1.2346
    assert rows[0]["contenders"]["lost"] == {"failed": "skipped: not installed"}
    cpu = records.main_cpu("kind")
    assert records.cpus("kind") == [cpu], "this machine's, where the class that the targets name has no rows"
    assert records.find("kind", "a", 2, cpu) is not None and records.find("kind", "c", 1, cpu) is None
    assert records.find("kind", "a", 2, "another") is None and records.find("nothing", "a", 1, cpu) is None


def test_the_page_is_up_to_date() -> None:
    """After new results: `python -m benchmarks.render`."""
    for path in render.PAGES:
        page = path.read_text(encoding="utf-8")
        assert render.rendered(page) == page, f"{path.name}: python -m benchmarks.render"
    assert render.data_digest() in render.PLOT.read_text(encoding="utf-8")
    assert {row["subject"] for row in records.read("networks")} <= set(NETWORKS)


def test_results_name_no_machine_and_no_path() -> None:
    for path in records.FOLDER.glob("*.json"):
        assert str(records.ROOT) not in path.read_text(encoding="utf-8")


def test_an_outdated_page_is_noticed() -> None:
    page = "prose\n<!-- targets -->\nold figures\n<!-- end -->\nmore prose"
    new = render.rendered(page)
    assert "old figures" not in new and new.startswith("prose\n<!-- targets -->\n| network |")
    assert new.endswith("<!-- end -->\nmore prose") and render.rendered(new) == new
    with pytest.raises(KeyError):
        render.rendered("<!-- nonsense -->\n<!-- end -->")


def test_a_file_of_other_sources_is_not_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "net.onnx"
    assert not records.is_current(made)
    made.write_bytes(b"1")
    assert not records.is_current(made), "who knows who made it"
    records.mark_current(made)
    assert records.is_current(made)
    monkeypatch.setattr(records, "compiler", lambda: "another")
    assert not records.is_current(made)
