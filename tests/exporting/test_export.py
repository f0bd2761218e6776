"""Lowering, emission and the proof of equality."""

import copy
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import binarize
from binarize import api
from binarize.config import ConvConfig
from binarize.errors import UnsupportedModelError, UsageError, VerificationError
from binarize.exporting import emit, verify
from binarize.exporting.emit import binary_nodes
from binarize.lowering import lower
from binarize.nn import BinaryConv2d
from binarize.nn.binary_conv import BinaryConv1d, BinaryConv3d
from binarize.passes.lower_layers import lower_layers
from binarize.passes.lower_tools import constant
from tests.models import EveryConv, PreActivation, conv_bn, randomized

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def prepared(model, *values):
    module = binarize.apply(model, X, config=api.resolve_config("el", None, values))
    return randomized(module).eval()


@pytest.fixture(scope="module")
def lowered_and_model():
    lowered = lower(prepared(EveryConv()), (X,))
    return lowered, emit(lowered, (X,))


def targets(graph_module):
    return [str(node.target) for node in graph_module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("link.position=post_bn",),
        ("link.pool=max",),
        ("link.kind=none",),
        ("link.gamma=channel",),
        ("link.residual=replace",),
        ("surgery.activation=keep",),
        ("surgery.activation=prelu", "conv.scale=none"),
        ("surgery.binarize_stem=true",),
        ("conv.weights=centred", "conv.weight_gradient=exact", "conv.box_scale=true"),
        ("conv.scale=spatial",),
        ("conv.gate=true", "link.kind=identity"),
    ],
    ids=str,
)
def test_every_switch_lowers_to_the_same_function(values):
    module = prepared(EveryConv(), *values)
    lowered = lower(module, (X,))
    with torch.no_grad():
        expected = module(X)
        torch.testing.assert_close(lowered.original(X), expected, rtol=0, atol=0)
        torch.testing.assert_close(lowered.fused(X), expected, rtol=1e-4, atol=1e-4)


def interacting(module):
    """Some edges between channels of every conv that has slots for them."""
    for m in module.modules():
        if isinstance(m, BinaryConv2d) and m.interaction is not None and m.out_channels > 3:
            m.interaction.target.copy_(torch.tensor([1, 1, 3, 0]))
            m.interaction.source.copy_(torch.tensor([0, 2, 2, 0]))
            m.interaction.sign.copy_(torch.tensor([1, -1, 1, 0]))
            m.interaction.limit, m.interaction.step = 2.0, 3.0
    return module


@pytest.mark.parametrize(
    "values",
    [
        ("conv.activations=ternary",),
        ("conv.activations=bases", "conv.weights=bases", "conv.activation_bases=2", "conv.weight_bases=3"),
        ("conv.weights=centred", "conv.weight_gradient=exact", "conv.box_scale=true"),
        ("conv.scale=spatial",),
        ("conv.gate=true",),
        ("conv.interactions=4", "link.kind=none"),
        ("conv.interactions=4", "link.pool=max"),  # a link that stays a map is added to the edges' conv
    ],
    ids=str,
)
def test_every_kind_of_conv_exports_and_is_proved(values):
    module = interacting(prepared(EveryConv(), *values))
    lowered = lower(module, (X,))
    inputs, outputs = {}, {}
    for name, conv in module.named_modules():
        if isinstance(conv, BinaryConv2d):
            conv.register_forward_hook(
                lambda _, x, y, name=name: inputs.update({name: x[0]}) or outputs.update({name: y})
            )
    with torch.no_grad():
        module(X)
        twins = copy.deepcopy(module)
        lower_layers(twins)
        for name, x in inputs.items():
            torch.testing.assert_close(twins.get_submodule(name)(x), outputs[name], rtol=1e-5, atol=1e-4)
    result = verify(lowered, emit(lowered, (X,)), (X,))
    assert result.nodes >= 15 and not result.failures


@pytest.mark.parametrize(("channels", "groups"), [(5, 1), (64, 1), (70, 1), (128, 1), (18, 9)])
def test_a_ternary_input_is_one_exact_conv(channels, groups):
    """Borders and unused bits included: accumulators are equal as integers."""
    parts = ConvConfig(activations="ternary", scale="none")
    net = torch.nn.Sequential(BinaryConv2d(channels, 9, 3, 2, 1, groups=groups, bias=False, parts=parts))
    x = torch.randn(2, channels, 7, 6)
    net.eval()
    lowered = lower(net, (x,))
    names = targets(lowered.fused)
    assert names.count("binarize.packed_conv2d.default") == 1 and names.count("binarize.pack.default") == 1
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(lowered.fused(x), expected) and torch.equal(expected, expected.round())
        model = emit(lowered, (x,))
        for session in (binarize.InferenceSession, ort.InferenceSession):
            got = session(model.SerializeToString()).run(None, {"input": x.numpy()})[0]
            assert np.array_equal(got, expected.numpy())


BASES = {"activations": "bases", "weights": "bases", "activation_bases": 2, "weight_bases": 3}
ALL_FACTORS = {"box_scale": True, "gate": True, "scale": "spatial"}


@pytest.mark.parametrize(
    ("dims", "parts", "bias"),
    [
        (1, BASES, True),
        (2, BASES, True),
        (3, BASES, True),
        (2, {"activations": "ternary", "weights": "bases"}, False),
        (2, {"gate": True}, True),
        (2, {"scale": "spatial"}, False),
        (2, ALL_FACTORS, True),
        (2, ALL_FACTORS | BASES, False),
    ],
)
def test_what_multiplies_accumulators_is_part_of_the_conv(dims, parts, bias):
    """Bases, gate, K, spatial scale and a bias behind them: one node, with batch norm and activation in it."""
    conv_class = {1: BinaryConv1d, 2: BinaryConv2d, 3: BinaryConv3d}[dims]
    norm = {1: torch.nn.BatchNorm1d, 2: torch.nn.BatchNorm2d, 3: torch.nn.BatchNorm3d}[dims]
    conv = conv_class(6, 10, 3, 1, 1, bias=bias, parts=ConvConfig(**parts), output_size=(7,) * dims)
    net = randomized(torch.nn.Sequential(conv, norm(10), torch.nn.PReLU(10))).eval()
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.rand_like(parameter)
    x = torch.randn(3, 6, *(7,) * dims)
    lowered = lower(net, (x,))
    if dims == 2:
        names = targets(lowered.fused)
        assert names.count("binarize.packed_conv2d.default") == 1 and "binarize.activate.default" not in names
        with_k = "box_scale" in parts  # a pooling of one channel, times the spatial scale's rows and columns
        assert sum("conv2d" in name for name in names) == 1
        assert sum("pool2d" in name for name in names) == with_k
        assert names.count("binarize.gate.default") == ("gate" in parts)
        assert sum("mul" in name for name in names) == 2 * with_k
        assert not any("batch_norm" in name for name in names)
    result = verify(lowered, emit(lowered, (x,)), (x,))
    assert result.nodes and not result.failures


@pytest.mark.parametrize(
    ("dims", "groups", "scale"), [(2, 1, "none"), (2, 4, "mean_abs"), (1, 1, "none"), (3, 2, "none")]
)
def test_edges_between_channels_are_two_small_convs_that_the_conv_adds(dims, groups, scale):
    """CI-Net's corrections: exact, and batch norm, residual and clipped signs stay in the operators."""
    conv_class = {1: BinaryConv1d, 2: BinaryConv2d, 3: BinaryConv3d}[dims]
    norm = {1: torch.nn.BatchNorm1d, 2: torch.nn.BatchNorm2d, 3: torch.nn.BatchNorm3d}[dims]

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            parts = ConvConfig(interactions=3, scale=scale, threshold="none")
            self.first = conv_class(8, 8, 3, 1, 1, groups=groups, bias=False, parts=parts)
            self.second = conv_class(8, 8, 3, 1, 1, groups=groups, bias=False, parts=parts)
            self.norms = torch.nn.ModuleList([norm(8), norm(8)])
            for conv in (self.first, self.second):
                conv.interaction.source.copy_(torch.tensor([0, 1, 0]))
                conv.interaction.target.copy_(torch.tensor([4, 5, 6]))
                conv.interaction.sign.copy_(torch.tensor([1, -1, 1]))
                conv.interaction.limit, conv.interaction.step = 2.0, 3.0

        def forward(self, x):
            y = torch.nn.functional.hardtanh(self.norms[0](self.first(x)))
            return torch.nn.functional.hardtanh(self.norms[1](self.second(y)) + x)

    net = randomized(Block()).eval()
    x = torch.randn(3, 8, *(6,) * dims)
    lowered = lower(net, (x,))
    with torch.no_grad():
        torch.testing.assert_close(lowered.original(x), net(x))
        plain = copy.deepcopy(net)
        for conv in (plain.first, plain.second):
            conv.interaction.sign.zero_()
        assert not torch.equal(plain(x), net(x))
    if dims == 2:
        names = targets(lowered.fused)
        assert names.count("binarize.packed_conv2d.default") == 6 and "binarize.activate.default" not in names
        assert not any("batch_norm" in name or "add" in name or "index" in name for name in names)
        assert sum("hardtanh" in name for name in names) == 1
    result = verify(lowered, emit(lowered, (x,)), (x,))
    assert not result.failures


def test_one_packed_op_per_conv_and_nothing_left_around_it(lowered_and_model):
    names = targets(lowered_and_model[0].fused)
    assert names.count("binarize.packed_conv2d.default") == 15
    assert "binarize.binary_conv2d.default" not in names
    assert "binarize.elastic_link.default" not in names
    # only the stem's batch norm is left
    assert sum("batch_norm" in name for name in names) == 1


def test_no_operator_that_onnx_runtime_is_slow_at(lowered_and_model):
    """Where and PRelu took 10 ms and 4 ms on one stem's map where everything else takes 0.2."""
    assert not SLOW & operators(lowered_and_model[1])


SLOW = {"Where", "PRelu"}


def operators(model):
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("slopes", [1, 16])
@pytest.mark.parametrize("activation", ["keep", "prelu", "rprelu"])
def test_a_prelu_between_kept_float_convs_is_one_of_our_operators(slopes, activation):
    """Although both its neighbours want the other layout: two changes of it cost less."""
    convs = [nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)]
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.PReLU(slopes)),
        *(convs[0], nn.BatchNorm2d(16), nn.PReLU(slopes)),
        *(convs[1], nn.PReLU(slopes)),
        *(convs[2], nn.BatchNorm2d(16), nn.PReLU(slopes)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    )
    lowered = lower(prepared(net, 'surgery.keep=["2", "5"]', f"surgery.activation={activation}"), (X,))
    model = emit(lowered, (X,))
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("Conv"), kinds.count("BinaryConv2d"), kinds.count("Activate")) == (3, 1, 3)
    assert not SLOW & operators(model)
    assert not verify(lowered, model, (X,)).failures


def test_pre_activation_nets_export():
    module = prepared(PreActivation())
    lowered = lower(module, (X,))
    assert verify(lowered, emit(lowered, (X,)), (X,)).nodes > 0


def test_the_proof_passes_on_our_kernels_and_on_stock_onnx_runtime(lowered_and_model):
    lowered, model = lowered_and_model
    ours = verify(lowered, model, (X,))
    stock = verify(lowered, model, (X,), session=ort.InferenceSession)
    for result in (ours, stock):
        assert result.nodes >= 15 and result.values > 0 and result.bits > 0
        assert result.worst <= 1 and not result.failures


@pytest.fixture(scope="module")
def narrowed_and_model():
    config = api.resolve_config("el", None, ["export.stream=float16"])
    lowered = lower(prepared(EveryConv()), (X,), config)
    return lowered, emit(lowered, (X,))


@pytest.mark.parametrize("stream", ["float32", "float16"])
@pytest.mark.parametrize("which", ["packed weight", "scale", "bias", "gamma", "stem"])
def test_the_proof_finds_one_wrong_number(which, stream, request):
    fixture = {"float32": "lowered_and_model", "float16": "narrowed_and_model"}[stream]
    lowered, model = request.getfixturevalue(fixture)
    assert verify(lowered, model, (X,)).worst <= 1
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    node = binary_nodes(broken)[2]
    position = {"packed weight": 1, "scale": 2, "bias": 3, "gamma": 5}.get(which)
    conv = next(n for n in broken.graph.node if n.op_type == "Conv")
    name = conv.input[1] if position is None else node.input[position]
    tensor = next(t for t in broken.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    if values.dtype == np.uint64:
        values.flat[0] ^= np.uint64(1)
    else:
        values.flat[0] += 0.05
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    with pytest.raises(VerificationError):
        verify(lowered, broken, (X,))


def test_a_node_that_the_proof_cannot_run_is_named():
    lowered = lower(prepared(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 8, 1))), (X,))
    model = emit(lowered, (X,))
    lowered.original.graph.output_node().prepend(lowered.original.graph.create_node("call_function", torch.det, (0,)))
    with pytest.raises(VerificationError, match=r"the proof cannot run .*det.*: TypeError") as refused:
        verify(lowered, model, (X,))
    assert refused.value.layer == "det" and "tlparse" not in str(refused.value)


def test_bits_that_rounding_decides_are_those_of_the_trained_model():
    """Thresholds between a float map and its twin that rounds otherwise: bits may differ, accumulators behind not."""
    module = prepared(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 8, 1)))
    stem, first = module.get_submodule("0"), module.get_submodule("1")
    with torch.no_grad():
        first.threshold.copy_(stem(X)[0, :, 5, 5])
    lowered = lower(module, (X,))
    conv = next(node for node in lowered.fused.graph.nodes if str(node.target) == "aten.conv2d.default")
    with torch.no_grad():
        constant(conv.args[1]).mul_(1 + 1e-6)
    result = verify(lowered, emit(lowered, (X,)), (X,))
    assert result.bits_near_threshold > 0
    assert result.worst <= 1


def test_batch_is_dynamic_and_weights_take_a_thirty_second(tmp_path):
    module = prepared(EveryConv())
    report = binarize.export(module, tmp_path / "m.onnx", X)
    session = binarize.InferenceSession(tmp_path / "m.onnx")
    name = session.get_inputs()[0].name
    one = session.run(None, {name: X[:1].numpy()})[0]
    five = session.run(None, {name: np.repeat(X[:1].numpy(), 5, 0)})[0]
    assert five.shape == (5, 5)
    np.testing.assert_allclose(five, np.repeat(one, 5, 0), rtol=1e-5, atol=1e-6)
    model = onnx.load(tmp_path / "m.onnx")
    packed = {
        t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT64
    }
    for node in binary_nodes(model):
        decision = next(d for d in report.binarized if d.layer == node.name)
        weight = packed[node.input[1]]
        words = -(-decision.in_channels // 64)
        assert weight.shape == (decision.out_channels // decision.groups, *decision.kernel, words)
        padded = decision.weight_bytes / 32 * words * 64 / decision.in_channels
        assert weight.nbytes == padded
    sizes = report.results["size"]
    assert sizes["packed_weights"] == sum(w.nbytes for w in packed.values())
    parts = ("packed_weights", "scales_links_thresholds", "float_layers", "metadata", "graph_and_functions")
    assert sizes["file"] == sum(sizes[part] for part in parts)
    assert (tmp_path / "m.onnx").stat().st_size == sizes["file"]


def test_the_file_says_what_was_decided(tmp_path):
    module = prepared(EveryConv())
    binarize.export(module, tmp_path / "m.onnx", X)
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    report = json.loads(metadata["binarize.report"])
    assert len(report["decisions"]) == len(module.report.decisions)
    assert all(d["reason"] for d in report["decisions"])
    assert report["results"]["verification"]["nodes"] > 0
    assert 'recipe = "el"' in metadata["binarize.config"]
    assert "torch" in json.loads(metadata["binarize.versions"])
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert not any(node.metadata_props or node.doc_string for node in graph.node), (
        "the exporter's notes name local paths"
    )


def test_a_file_says_nothing_of_what_another_export_found(tmp_path):
    module = randomized(binarize.apply(EveryConv().eval(), torch.randn(2, 3, 16, 16)))
    given = module.report.config
    module.report.config = binarize.Config().updated(given).updated({"export": {"stem": "int8"}}).to_dict()
    first = binarize.export(module, tmp_path / "first.onnx").results
    assert {"verification", "int8", "size"} <= first.keys()
    module.report.config = given
    binarize.export(module, tmp_path / "second.onnx", check=False)
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "second.onnx").metadata_props}
    assert json.loads(metadata["binarize.report"])["results"].keys() == {"preprocessing", "size"}


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"precious")

    def fails(*args, **kwargs):
        raise VerificationError("no")

    monkeypatch.setattr("binarize.exporting.verify", fails)
    with pytest.raises(VerificationError):
        binarize.export(prepared(EveryConv()), path, X)
    assert path.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_unwritable_output_is_told_before_the_work(tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        binarize.export(prepared(EveryConv()), tmp_path / "missing" / "m.onnx", X)
    with pytest.raises(UsageError, match="directory"):
        binarize.export(prepared(EveryConv()), tmp_path, X)


def test_stage_one_weights_are_not_exported(tmp_path):
    from binarize.config import StageConfig
    from binarize.training.stages import set_stage_bits

    module = prepared(EveryConv())
    set_stage_bits(module, StageConfig(weights="float"))
    with pytest.raises(UsageError, match="not binary yet"):
        binarize.export(module, tmp_path / "m.onnx", X)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_torchvision_models_at_full_size(name, tmp_path):
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    conversion = binarize.convert(model, tmp_path / "m.onnx", input_size=(3, 224, 224))
    result = conversion.report.results["verification"]
    assert result["nodes"] >= len(conversion.report.binarized) and result["worst"] <= 1


def test_a_map_that_is_flattened_comes_out_in_the_right_order(tmp_path):
    """VGG's head: the island's last value is NHWC, and the linear layer counts channels first."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, 2, 1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(8),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 64, 5),
    )
    module = randomized(binarize.apply(model.eval(), X)).eval()
    report = binarize.export(module, tmp_path / "flat.onnx", X)
    assert report.results["verification"]["failures"] == []


def test_constants_that_code_makes_itself_get_names_that_a_second_export_leaves_alone() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.order = [2, 0, 1]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, self.order]

    net = nn.Sequential(Shuffled(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    inputs = (torch.randn(2, 3, 9, 9),)
    lowered = lower(binarize.apply(net, inputs).eval(), inputs)
    constants = [str(node.target) for node in lowered.fused.graph.find_nodes(op="get_attr")]
    assert any(name.startswith("constant_") for name in constants)
    assert not any("lifted_tensor" in name for name in constants)  # torch.export numbers its own anew in every export
    assert not verify(lowered, emit(lowered, inputs), inputs).failures


def test_hooks_on_a_binary_conv_are_in_the_file(tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv_bn(3, 16), conv_bn(16, 16), conv_bn(16, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[1][0].register_forward_hook(lambda module, inputs, output: output * 3 + 1)
    x = torch.randn(4, 3, 12, 12)
    module = binarize.apply(model, x).eval()
    binarize.export(module, tmp_path / "m.onnx", x)
    (found,) = binarize.InferenceSession(tmp_path / "m.onnx").run(None, {"input": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, module(x).numpy(), rtol=1e-4, atol=1e-4)


class Masked(nn.Module):
    """A map times, or filled by, a constant of its rows and columns that is no float."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.body, self.end, self.mask = conv_bn(3, 16), conv_bn(16, 16), nn.Buffer(mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        x = x.masked_fill(self.mask, 0.0) if self.mask.dtype == torch.bool else x * self.mask
        return self.end(x).mean((2, 3))


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_constants_of_any_type_follow_the_layout(size, dtype, tmp_path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    module = binarize.apply(Masked(torch.randint(0, 2, size).to(dtype)), x).eval()
    binarize.export(module, tmp_path / "m.onnx", x)


def test_values_beyond_float16_are_the_models_and_no_bug(tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv_bn(3, 16), conv_bn(16, 16), conv_bn(16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[1][1].weight.data.mul_(1e6)
    x = torch.randn(2, 3, 12, 12)
    module = binarize.apply(model, x, config=api.resolve_config("el", None, ["export.stream=float16"])).eval()
    with pytest.raises(UnsupportedModelError, match="float16 ends at 65504") as caught:
        binarize.export(module, tmp_path / "m.onnx", x)
    assert "--stream float32" in caught.value.hint and caught.value.layer.startswith("1.")
