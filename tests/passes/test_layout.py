"""The layout inside binary islands: every operator between packed ones is channels-last, and nothing changes layout."""

from __future__ import annotations

import operator
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import onnx
import onnx.inliner
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor, nn

import binarize
from binarize import api
from binarize.exporting import emit, verify
from binarize.lowering import Lowered, lower
from binarize.nn import RPReLU
from binarize.passes.lower_tools import ACTIVATE, PACKED_CONV, PERMUTE, POOL, origin_of
from binarize.runtime import InferenceSession
from binarize.runtime.library import DOMAIN
from tests.models import BasicBlock, PreActivation, SqueezeExcite, conv_bn, randomized

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


class Between(nn.Module):
    """A stem, a binary conv, `middle`, a binary conv, global pooling and a classifier."""

    def __init__(self, middle: Callable[[Tensor], Tensor], channels: int = 24) -> None:
        super().__init__()
        self.stem = conv_bn(3, 24)
        self.before = conv_bn(24, 24)
        self.middle = middle
        self.after = conv_bn(channels, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.middle(self.before(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        left, right = x.chunk(2, dim=1)
        return torch.cat([right, left], 1)


class LinearGate(nn.Module):
    """Squeeze-excite with linear layers, spelled the way most repositories do."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(c, 8), nn.Linear(8, c)

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        s = F.adaptive_avg_pool2d(x, 1).view(n, c)
        s = torch.sigmoid(self.up(torch.relu(self.down(s)))).view(n, c, 1, 1)
        return x * s.expand_as(x)


class ReluBefore(nn.Module):
    """A residual sum that no conv can absorb, since both its operands are read again."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + F.max_pool2d(x, 3, 1, 1), 0.1) + x


class Reordered(nn.Module):
    """A permutation of channels that a pretrained net keeps as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(24))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.order)


MIDDLES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "nothing": (nn.Identity, 24),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm2d(24), nn.PReLU(24)), 24),
    "max pooling": (lambda: nn.MaxPool2d(3, 2, 1), 24),
    "max pooling with a ceiling": (lambda: nn.MaxPool2d(3, 2, ceil_mode=True), 24),
    "average pooling": (lambda: nn.AvgPool2d(3, 2, 1), 24),
    "average pooling of the inside": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), 24),
    "adaptive pooling": (lambda: nn.AdaptiveAvgPool2d(4), 24),
    "concatenation": (lambda: _Apply(lambda x: torch.cat([x, F.avg_pool2d(x, 3, 1, 1)], 1)), 48),
    "shuffle": (Shuffle, 24),
    "channels by number": (Reordered, 24),
    "slices": (lambda: _Apply(lambda x: x[:, 8:] - x[:, :16]), 16),
    "squeeze-excite": (lambda: SqueezeExcite(24), 24),
    "linear gate": (lambda: LinearGate(24), 24),
    "upsampling": (lambda: nn.Upsample(scale_factor=2), 24),
    "padding": (lambda: nn.ZeroPad2d((1, 2, 0, 3)), 24),
    "residual": (ReluBefore, 24),
    "attention of pixels": (lambda: _Apply(_attention_of_pixels), 24),
    "maximum over the map": (lambda: _Apply(lambda x: x * torch.sigmoid(x.amax((2, 3), keepdim=True))), 24),
    "softmax over channels": (lambda: _Apply(lambda x: x * torch.softmax(x, 1)), 24),
    "channel constants": (lambda: _Apply(lambda x: x * torch.arange(24.0).view(24, 1, 1) + 1), 24),
}


def _attention_of_pixels(x: Tensor) -> Tensor:
    """A factor per pixel from what all channels say, as in CBAM, and one from the whole map."""
    pixels = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return x * torch.sigmoid(pixels.sum(1, keepdim=True)) + x.mean((1, 2, 3), keepdim=True)


class _Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def lowered(model: nn.Module, *settings: str) -> Lowered:
    config = api.resolve_config("el", None, settings)
    return lower(randomized(binarize.apply(model, X, config=config)).eval(), (X,), config)


def changes_of_layout(result: Lowered) -> int:
    """Transpositions that are left, but for those of channels among themselves."""
    return sum(n.target is PERMUTE for n in result.fused.graph.nodes)


@pytest.mark.parametrize("name", MIDDLES)
def test_what_lies_between_convs_stays_channels_last(name: str) -> None:
    make, channels = MIDDLES[name]
    check_layout(lowered(Between(make(), channels)))


@pytest.mark.parametrize("kind", [nn.Hardswish, nn.SiLU, nn.Hardsigmoid, nn.Mish])
def test_an_activation_that_is_kept_stays_channels_last(kind: type[nn.Module]) -> None:
    check_layout(lowered(Between(kind(), 24), "surgery.activation=keep"))


def test_the_mean_magnitude_of_the_input_stays_channels_last() -> None:
    """XNOR-Net's K, with its window and without."""
    check_layout(lowered(Between(conv_bn(24, 24, 1, 2)), "conv.box_scale=true"), convs=3)


def check_layout(result: Lowered, convs: int = 2) -> None:
    """The stem's output changes layout, nothing else does: in the graph, in the file, and in what a session runs."""
    assert Counter(n.target for n in result.fused.graph.nodes)[PACKED_CONV] == convs
    assert changes_of_layout(result) == 1
    with torch.no_grad():
        torch.testing.assert_close(result.fused(X), result.original(X), rtol=1e-4, atol=1e-4)
    model = emit(result, (X,))
    assert changes_in_file(model.graph.node) == ["Transpose"]
    assert changes_in_file(behind_the_entry(optimized(model))) == []
    verify(result, model, (X,))


def changes_in_file(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """The operators that change a layout: ONNX's own, and ONNX Runtime's into its blocked layout and out of it."""
    return [node.op_type for node in nodes if node.op_type == "Transpose" or node.op_type.startswith("Reorder")]


def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """What ONNX Runtime makes of `model` before it runs it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that such a file is for this machine
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        InferenceSession(model.SerializeToString(), options)
        return onnx.load(options.optimized_model_filepath)


def behind_the_entry(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes from the first of ours on."""
    nodes = list(model.graph.node)
    first = next(index for index, node in enumerate(nodes) if node.domain == DOMAIN)
    return nodes[first:]


@pytest.mark.parametrize("name", ["concatenation", "squeeze-excite", "shuffle", "average pooling"])
def test_a_float16_stream_goes_through_what_moves_values_and_is_proved(name: str) -> None:
    make, channels = MIDDLES[name]
    result = lowered(Between(make(), channels), "export.stream=float16")
    model = emit(result, (X,))
    proof = verify(result, model, (X,))
    assert proof.bits > 0 and proof.worst <= 1
    streams = {n.output[0] for n in model.graph.node if n.op_type in ("BinaryConv2d", "Activate") and n.output[0]}
    kinds = {v.name: v.type.tensor_type.elem_type for v in _inferred(model)}
    assert streams and all(kinds[name] == TensorProto.FLOAT16 for name in streams)
    assert sum(n.op_type == "Cast" for n in model.graph.node) == 1, "only at the end"


def _inferred(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Every value's type, with the functions in our operators' place."""
    inlined = onnx.inliner.inline_local_functions(model)
    return list(onnx.shape_inference.infer_shapes(inlined).graph.value_info)


def test_a_float_conv_inside_the_island_has_one_change_on_either_side() -> None:
    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(x)

    result = lowered(Between(Middle()), "surgery.keep=middle.plain.0")
    assert changes_of_layout(result) == 3
    verify(result, emit(result, (X,)), (X,))


def test_a_stem_pools_before_its_activation_and_changes_layout_behind_both() -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv_bn(3, 24)
            self.pool = nn.MaxPool2d(3, 2, 1)
            self.block = BasicBlock(24, 24)
            self.head = nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.pool(self.stem(x))).mean((2, 3)))

    module = binarize.apply(Stem(), X).eval()  # slopes of 0.25: a rising activation
    result = lower(module, (X,))
    model = emit(result, (X,))
    names = [node.op_type for node in model.graph.node]
    assert names[:4] == ["Conv", "MaxPool", "Transpose", "Activate"]
    verify(result, model, (X,))
    with torch.no_grad():
        next(m for m in module.modules() if isinstance(m, RPReLU)).slope[3] = -0.5
    falling = [node.op_type for node in emit(lower(module, (X,)), (X,)).graph.node]
    assert falling[:4] == ["Conv", "Transpose", "Activate", "MaxPool"], "a falling activation must see every pixel"


def test_a_pool_that_changed_places_with_its_activation_has_no_equal_and_the_activation_is_compared() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(48)

        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(F.relu(self.norm(torch.cat([x, x.sigmoid()], 1))), 2)

    result = lower(binarize.apply(Between(Joined(), 48), X).eval(), (X,))
    pooled, activated = (
        next(n for n in result.fused.graph.nodes if n.target is target and n.args[0].target is source)
        for target, source in ((POOL, operator.getitem), (ACTIVATE, POOL))
    )
    assert origin_of(pooled) is None and origin_of(activated) == "max_pool2d"
    proof = verify(result, emit(result, (X,)), (X,))
    assert proof.failures == []


def test_pre_activation_blocks_are_one_activation_per_conv() -> None:
    result = lowered(PreActivation())
    kinds = Counter(node.op_type for node in emit(result, (X,)).graph.node)
    assert kinds["Activate"] == 2 and kinds["BinaryConv2d"] == 2 and kinds["Pack"] == 0
    assert not {"BatchNormalization", "Relu", "Where", "PRelu", "Max", "Clip"} & set(kinds)
