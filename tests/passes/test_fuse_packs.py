"""The bits of a map are made where the map is: a plane for each threshold that its readers compare it with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize import api
from binarize.exporting import emit, verify
from binarize.exporting.quantize import batches_of, quantize_ends
from binarize.lowering import Lowered, lower
from binarize.passes.lower_tools import ACTIVATE, PACK, Fused, constant, packed_convs
from tests.models import conv_bn, randomized

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


class Readers(nn.Module):
    """A stem, a conv and three readers of its map, one of them strided, one depthwise."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.stem, self.made = conv_bn(3, channels), conv_bn(channels, channels)
        self.first, self.second = conv_bn(channels, channels, 1), conv_bn(channels, channels, s=2)
        self.third = conv_bn(channels, channels, g=channels)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.made(self.stem(x))
        read = [m(y).mean((2, 3)) for m in (self.first, self.second, self.third)]
        return self.head(sum(read[1:], read[0]))


def lowered(model: nn.Module, recipe: str, *settings: str, alike: bool = False) -> Lowered:
    config = api.resolve_config(recipe, None, settings)
    module = randomized(binarize.apply(model, X, config=config))
    if alike:
        for conv in (module.second, module.third):
            conv[0].threshold.data.copy_(module.first[0].threshold)  # type: ignore[union-attr, index]
    return lower(module.eval(), (X,), config)


def check(result: Lowered) -> None:
    with torch.no_grad():
        torch.testing.assert_close(result.fused(X), result.original(X), rtol=1e-4, atol=1e-4)
    verify(result, emit(result, (X,)), (X,))


def planes_made(result: Lowered) -> dict[str, int]:
    """By the path of a conv, or the name of an activation: the planes of bits that it makes for others."""
    activations = result.fused.graph.find_nodes(op="call_function", target=ACTIVATE)
    makers = {node.name: Fused(node) for node in activations}
    makers |= {str(conv.node.meta["path"]): conv for conv in packed_convs(result.fused)}
    thresholds = {name: maker.value("next_threshold") for name, maker in makers.items()}
    return {name: threshold.view(-1, threshold.shape[-1]).shape[0] for name, threshold in thresholds.items()}


def packs(result: Lowered) -> int:
    return len(result.fused.graph.find_nodes(op="call_function", target=PACK))


@pytest.mark.parametrize("stream", ["float32", "float16"])
def test_readers_with_thresholds_of_their_own_have_planes_of_their_own(stream: str) -> None:
    result = lowered(Readers(), "el", f"export.stream={stream}")
    assert packs(result) == 0 and planes_made(result)["made.0"] == 3
    reads = {str(conv.node.meta["path"]): conv.terms.first_plane for conv in packed_convs(result.fused)}
    assert sorted(reads[path] for path in ("first.0", "second.0", "third.0")) == [0, 1, 2]
    if stream == "float32":
        check(result)
    verify(result, emit(result, (X,)), (X,))


def test_readers_with_one_threshold_share_a_plane() -> None:
    result = lowered(Readers(), "el", alike=True)
    assert packs(result) == 0 and planes_made(result)["made.0"] == 1
    check(result)


def test_a_conv_of_several_planes_needs_no_pack_behind_a_conv() -> None:
    """TBN's ternary activations: two planes for each of three readers."""
    result = lowered(Readers(), "tbn", "surgery.keep=[]")
    assert planes_made(result)["made.0"] == 6 and packs(result) == 1, "the stem is no operator of ours"
    check(result)


def test_a_map_of_too_many_planes_is_packed_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("binarize.passes.fuse_packs.MOST_PLANES", 2)
    result = lowered(Readers(), "el")
    assert planes_made(result)["made.0"] == 2 and packs(result) == 1
    check(result)


class Joined(nn.Module):
    """Readers of a concatenation and of a pool of it, as in an inception block."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv_bn(3, 24), conv_bn(3, 16)
        self.first, self.second, self.third = conv_bn(40, 24, 1), conv_bn(40, 24), conv_bn(40, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.left(x), self.right(x)], 1)
        pooled = nn.functional.max_pool2d(y, 3, 1, 1)
        return self.head((self.first(y) + self.second(y) + self.third(pooled)).mean((2, 3)))


@pytest.mark.parametrize("stream", ["float32", "float16"])
@pytest.mark.parametrize("recipe", ["el", "tbn"])
def test_one_pack_serves_all_readers_of_a_concatenation(recipe: str, stream: str) -> None:
    result = lowered(Joined(), recipe, "surgery.keep=['rule:stem']", f"export.stream={stream}")
    made = {node.args[0]: node for node in result.fused.graph.find_nodes(op="call_function", target=PACK)}
    assert packs(result) == len(made) == 2, "one of the concatenation, one of its pool"
    assert {constant(node.args[1]).shape[0] for node in made.values()} == ({2, 40} if recipe == "el" else {4, 2})
    if stream == "float32":
        check(result)
    verify(result, emit(result, (X,)), (X,))


def test_an_int8_stem_makes_planes() -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.second = conv_bn(3, 24), conv_bn(24, 24), conv_bn(24, 24, 1)
            self.head = nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.head((self.first(y) + self.second(y)).mean((2, 3)))

    result = lowered(Stem(), "el")
    assert 2 in planes_made(result).values() and packs(result) == 0
    check(result)
    ends = quantize_ends(emit(result, (X,)), batches_of({"input": X.repeat(4, 1, 1, 1).numpy()}))
    (stem,) = (node for node in ends.graph.node if node.op_type == "Int8Conv2d")
    threshold = next(t for t in ends.graph.initializer if t.name == stem.input[9])
    assert list(threshold.dims) == [2, 24]
    float_ends, int8_ends = (
        binarize.InferenceSession(model.SerializeToString()).run(None, {"input": X.numpy()})[0]
        for model in (emit(result, (X,)), ends)
    )
    assert abs(float_ends - int8_ends).max() < 0.2 * abs(float_ends).max()
