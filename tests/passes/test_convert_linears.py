"""Linear layers as 1x1 convs: the same float function, then everything a conv has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import binarize
from binarize.config import Config
from binarize.nn import BinaryConv2d, ElasticLink, RPReLU
from binarize.passes.base import PassContext
from binarize.passes.capture import capture
from binarize.passes.convert_linears import ConvertLinears
from binarize.passes.plan import plan
from binarize.training.calibration import calibrate
from tests.models import conv_bn

X = torch.randn(3, 3, 16, 16)


class ChannelsLast(nn.Module):
    """ConvNeXt's block: depthwise conv, then norm, two linear layers and a scale with the channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 5, 1, 2, groups=channels)
        self.norm, self.up, self.down = nn.LayerNorm(channels), nn.Linear(channels, 20), nn.Linear(20, channels)
        self.activation, self.drop = nn.GELU(), nn.Dropout(0.1)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        y = self.drop(self.down(self.drop(self.activation(self.up(y)))))
        return x + self.scale * y.permute(0, 3, 1, 2)


class LinearNet(nn.Module):
    """Stem, a channels-last block, tokens, hidden linear layers and the layer that gives the output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.conv = conv_bn(3, 8), ChannelsLast(8), conv_bn(8, 12, 3, 2)
        self.tokens = nn.Linear(12, 10)
        self.hidden = nn.Sequential(nn.Linear(640, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 24), nn.PReLU())
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.block(self.stem(x)))
        y = torch.relu(self.tokens(y.flatten(2).transpose(1, 2)))
        head: Tensor = self.head(self.hidden(y.flatten(1)))
        return head


def settings(linear: str, *more: str) -> Config:
    return Config().with_settings([f"surgery.linear={linear}", *more])


def converted(model: nn.Module, x: Tensor) -> GraphModule:
    """After planning and converting, before anything becomes binary."""
    captured = capture(model, (x,))
    context = PassContext(settings("all"), captured.recording)
    plan(model, captured.recording.graph, context)
    graph_module = ConvertLinears().run(captured.regions[""], context).graph_module
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def test_the_float_function_stays() -> None:
    model = LinearNet().eval()
    expected = model(X)
    module = converted(model, X)
    linears = {name for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    assert linears == {"head"}
    torch.testing.assert_close(module(X), expected)


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 6), (2, 3, 4, 6), (2, 2, 3, 4, 6)])
def test_rows_of_any_rank(shape: tuple[int, ...]) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first, self.second = nn.Conv1d(1, 1, 1), nn.Linear(6, 8), nn.Linear(8, 6)
            self.last = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x.flatten(1).unsqueeze(1)).view(x.shape)
            last: Tensor = self.last(self.second(torch.tanh(self.first(x))))
            return last

    x = torch.randn(shape)
    model = Rows().eval()
    expected = model(x)
    torch.testing.assert_close(converted(model, x)(x), expected)


def test_linear_layers_count_only_when_wanted() -> None:
    model = LinearNet().eval()
    found = {
        mode: {
            d.layer: d.rule
            for d in binarize.inspect(model, (X,), config=settings(mode)).decisions
            if d.kind == "linear"
        }
        for mode in ("keep", "spatial", "all")
    }
    assert found == {
        "keep": {},
        "spatial": {"block.up": "eligible", "block.down": "eligible"},
        "all": {
            **dict.fromkeys(("block.up", "block.down", "tokens", "hidden.0", "hidden.3"), "eligible"),
            "head": "classifier",
        },
    }


def test_a_linear_layer_with_arithmetic_of_its_own_does_not_count() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = LinearNet()
    model.tokens = Doubled(12, 10)
    report = binarize.inspect(model.eval(), (X,), config=settings("all"))
    assert "tokens" not in {d.layer for d in report.decisions}


def test_the_summary_says_what_linear_layers_would_be_worth() -> None:
    model = LinearNet().eval()
    report = binarize.inspect(model, (X,), config=settings("keep"))
    assert report.float_linear_macs == 16 * 16 * (8 * 20 + 20 * 8)
    assert "--linear spatial" in report.summary()
    assert "--linear" not in binarize.inspect(model, (X,), config=settings("spatial")).summary()


def test_queries_of_attention_stay_float() -> None:
    class Attention(nn.Module):
        """Over the positions of a map's rows."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.qkv, self.project = conv_bn(3, 8), nn.Linear(8, 24), nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.stem(x).permute(0, 2, 3, 1)).chunk(3, -1)
            y = self.project((q @ k.transpose(-1, -2)).softmax(-1) @ v)
            head: Tensor = self.head(y.mean((1, 2)))
            return head

    report = binarize.inspect(Attention().eval(), (X,), config=settings("spatial"))
    assert {d.layer: d.rule for d in report.decisions}["qkv"] == "attention"
    assert {d.layer: d.rule for d in report.decisions}["project"] == "eligible"


def test_a_binary_linear_layer_has_all_that_a_conv_has() -> None:
    model = LinearNet().eval()
    module = binarize.apply(model, X, config=settings("all"))
    decisions = {d.layer: d for d in module.report.decisions}
    for path in ("block.up", "block.down", "tokens", "hidden.0", "hidden.3"):
        conv, float_weight = module.get_submodule(path), model.get_submodule(path).weight
        assert isinstance(conv, BinaryConv2d) and isinstance(float_weight, Tensor)
        assert torch.equal(conv.weight[:, :, 0, 0], float_weight)
        assert isinstance(module.get_submodule(f"{path}_bn"), nn.BatchNorm2d)
        assert isinstance(module.get_submodule(f"{path}_link"), ElasticLink)
    assert (decisions["block.up"].link, decisions["block.down"].link) == ("expand", "squeeze")
    assert decisions["block.down"].residual == "kept"
    replaced = [m for m in module.modules() if isinstance(m, RPReLU)]
    assert sorted(m.slope.numel() for m in replaced) == [8, 20, 24]  # stem, between up and down, between the hidden
    module.train()(X).square().mean().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_calibration_meets_the_channels_of_a_linear_layer() -> None:
    model = LinearNet().eval()
    outputs: list[Tensor] = []
    model.block.up.register_forward_hook(lambda _, args, out: outputs.append(out))
    module = binarize.apply(model, X, config=settings("spatial"))
    calibrate(module, model, [X])
    norm = module.get_submodule("block.up_bn")
    torch.testing.assert_close(norm.bias, outputs[-1].detach().mean((0, 1, 2)))
    torch.testing.assert_close(norm.weight, outputs[-1].detach().std((0, 1, 2)))
    assert bool((module.get_submodule("block.up").threshold != 0).all())


def test_an_exported_net_of_linear_layers_is_equal_and_packed(tmp_path: Path) -> None:
    module = binarize.apply(LinearNet().eval(), X, config=settings("all")).eval()
    report = binarize.export(module, tmp_path / "net.onnx", X)
    found = report.results["verification"]
    assert found["failures"] == [] and found["nodes"] >= len(report.binarized) == 7
    session = binarize.InferenceSession(str(tmp_path / "net.onnx"))
    for batch in (1, 4):
        x = torch.randn(batch, 3, 16, 16)
        (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert logits.shape == (batch, 5)
