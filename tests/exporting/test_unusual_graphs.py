"""What models of the zoo do that plain nets do not; each export is proved node by node."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import binarize
from binarize.config import Config
from binarize.errors import UnsupportedModelError, UsageError
from binarize.exporting import emit, verify
from binarize.lowering import lower
from tests.models import conv_bn, randomized

X = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(3))


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class Nested(nn.Module):
    """A net with a stem, a head, and `middle` between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = conv(8, 16), conv(16, 16), conv(16, 16), nn.Linear(16, 4)

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)).mean((2, 3)))


class WindowAttention(Nested):
    """Twins: attention inside windows, with two dimensions before the heads."""

    def middle(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q = x.flatten(2).transpose(1, 2).unflatten(1, (4, 64)).unsqueeze(2)  # batch, windows, heads, pixels, channels
        x = F.scaled_dot_product_attention(q, q, q).flatten(1, 3).transpose(1, 2).unflatten(2, (16, 16))
        return self.second(x)


class OuterProduct(Nested):
    """FocalNet: a map of one channel times a pixel of many."""

    def middle(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x[:, :1] * F.gelu(x.mean((2, 3), keepdim=True)))


class PaddedPool(Nested):
    """NASNet: a max pool behind padding of -inf."""

    def middle(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.pad(self.first(x), (0, 1, 0, 1), value=-torch.inf), 3, 2)
        return self.second(x)


class EqualBranches(Nested):
    """FastViT: untrained, several branches compute the same from the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3))
        self.convs = nn.ModuleList(conv(16, 16, kernel) for kernel in (1, 3, 5))

    def middle(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(sum(c(F.gelu(n(x))) for n, c in zip(self.norms, self.convs, strict=True)))


class HeadsFromChannels(Nested):
    """BoTNet: the heads of an attention over a map that our ops keep with its channels last."""

    def middle(self, x: Tensor) -> Tensor:
        q, k = (part.reshape(-1, 4, 256) for part in self.first(x).split(8, dim=1))
        x = (q @ (q.transpose(1, 2) @ k).softmax(-1)).reshape(-1, 8, 16, 16)
        return self.second(torch.cat((x, x), 1))


class ChunksTheBatch(Nested):
    """RAFT: two images go through one encoder as a batch, and are taken apart again."""

    def middle(self, x: Tensor) -> Tensor:
        first, second = torch.chunk(self.first(torch.cat((x, x.flip(1)))), 2)
        return self.second(first + second)


class SharedConv(Nested):
    """RAFT: a conv that is called again and again, on maps of the operator that packs for it."""

    def middle(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = F.relu(self.second(F.relu(self.first(x))))
        return x


class PoolBehindSqueezeExcite(Nested):
    """SE-ResNet: a pool of what a sum was activated to, and no conv takes that activation in."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(16, 16, 1), nn.Sigmoid())

    def middle(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(F.max_pool2d(F.relu(y * self.gate(y) + x), 2))


class PoolBehindBranches(Nested):
    """Inception: a pool of joined branches, activated together."""

    def middle(self, x: Tensor) -> Tensor:
        x = torch.cat((self.first(x), self.second(x)), 1)
        return self.second(F.max_pool2d(F.relu(x), 3, 2)[:, :16])


class PoolBehindNorm(Nested):
    """DenseNet: norm, activation and pool of joined maps."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.pool = nn.BatchNorm2d(32), nn.MaxPool2d(3, 2, 1, ceil_mode=True)

    def middle(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(torch.cat((self.first(x), x), 1))))
        return self.second(x[:, 8:24])


def halve(sizes: list[int]) -> list[int]:
    """Video Swin: a function that is called whole, and writes into the list that it is given."""
    sizes[0] //= 2
    return sizes


fx.wrap("halve")


class WritesToConstants(Nested):
    def middle(self, x: Tensor) -> Tensor:
        size = halve([x.shape[2], 8])
        return self.second(F.adaptive_avg_pool2d(self.first(x), (size[0], size[1])))


@pytest.mark.parametrize(
    "kind",
    [
        WindowAttention,
        OuterProduct,
        PaddedPool,
        EqualBranches,
        HeadsFromChannels,
        ChunksTheBatch,
        SharedConv,
        PoolBehindSqueezeExcite,
        PoolBehindBranches,
        PoolBehindNorm,
        WritesToConstants,
    ],
    ids=lambda kind: kind.__name__,
)
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
def test_the_export_is_proved(kind: type[Nested], trained: bool) -> None:
    torch.manual_seed(0)
    module = binarize.apply(kind().eval(), X)
    if trained:
        randomized(module)
    lowered = lower(module.eval(), (X,))
    proof = verify(lowered, emit(lowered, (X,)), (X,))
    assert proof.nodes >= 2 and proof.failures == []


def test_a_model_beyond_the_formats_limit_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["binarize.exporting.emit"], "MAX_BYTES", 1000)  # the package names a function so
    lowered = lower(binarize.apply(PaddedPool().eval(), X).eval(), (X,))
    with pytest.raises(UnsupportedModelError, match=r"weights take .* GB, and an ONNX file holds"):
        emit(lowered, (X,))


def test_a_batch_that_the_code_fixes_is_reported(tmp_path: Path) -> None:
    report = binarize.export(binarize.apply(ChunksTheBatch().eval(), X).eval(), tmp_path / "fixed.onnx", X)
    assert report.results["fixed_batch"] == len(X)
    assert binarize.InferenceSession(tmp_path / "fixed.onnx").get_inputs()[0].shape == [*X.shape]
    report = binarize.export(binarize.apply(PaddedPool().eval(), X).eval(), tmp_path / "any.onnx", X)
    assert "fixed_batch" not in report.results
    assert binarize.InferenceSession(tmp_path / "any.onnx").get_inputs()[0].shape == ["batch", *X.shape[1:]]


def test_int8_ends_of_a_fixed_batch_take_whole_batches(tmp_path: Path) -> None:
    config = Config().updated({"export": {"stem": "int8"}})
    module = binarize.apply(ChunksTheBatch().eval(), X, config=config).eval()
    images = torch.randn(2 * len(X) + 1, *X.shape[1:], generator=torch.Generator().manual_seed(3))
    report = binarize.export(module, tmp_path / "ends.onnx", X, images=images)
    assert report.results["int8"]["images_compared"] == 1, "one of the two whole batches"
    session = binarize.InferenceSession(tmp_path / "ends.onnx")
    assert all(np.isfinite(y).all() for y in session.run(None, {session.get_inputs()[0].name: X.numpy()}))
    with pytest.raises(UsageError, match=f"takes {len(X)} images at a time"):
        binarize.export(module, tmp_path / "few.onnx", X, images=images[: len(X) - 1])


def test_int8_ends_of_a_model_with_two_inputs_are_refused_if_images_set_them(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = conv_bn(8, 16), conv_bn(16, 16)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.conv(self.stem(a + b))

    module = binarize.apply(Two().eval(), (X, X), config=Config().updated({"export": {"stem": "int8"}})).eval()
    with pytest.raises(UnsupportedModelError, match="takes 2 inputs"):
        binarize.export(module, tmp_path / "two.onnx", (X, X), images=X)
