"""Nets as Hugging Face writes them: decorated forwards with keyword arguments, outputs of a class, late hooks."""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import MappingKey, register_pytree_node

import binarize
from binarize.nn import BinaryConv2d
from binarize.passes.capture import capture
from tests.models import BasicBlock, conv_bn

X = torch.randn(2, 3, 16, 16)


@dataclasses.dataclass
class Output(OrderedDict):
    """Read by name, key and index."""

    maps: Tensor | None = None
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                OrderedDict.__setitem__(self, field.name, getattr(self, field.name))

    def __getitem__(self, key: str | int) -> Tensor:
        return super().__getitem__(key) if isinstance(key, str) else list(self.values())[key]


register_pytree_node(
    Output,
    lambda output: (list(output.values()), list(output)),
    lambda values, keys: Output(**dict(zip(keys, values, strict=True))),
    flatten_with_keys_fn=lambda output: ([(MappingKey(k), v) for k, v in output.items()], list(output)),
)


class Plain(OrderedDict):
    """A dict subclass that is no dataclass."""

    def first(self) -> Tensor:
        return next(iter(self.values()))


def decorated(forward):
    @functools.wraps(forward)
    def wrapper(self, *args, **kwargs):
        kwargs.pop("return_dict", None)
        return forward(self, *args, **kwargs)

    return wrapper


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.other = conv_bn(3, 8), BasicBlock(8, 8), BasicBlock(8, 8)

    @decorated
    def forward(self, pixels: Tensor, scale: float | None = None, *, deep: bool = True, **kwargs) -> Output:
        y = self.block(self.stem(pixels))
        return Output(maps=self.other(y) if deep else y)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Linear(8, 5)

    @decorated
    def forward(self, pixels: Tensor, labels: Tensor | None = None, **kwargs) -> Output:
        maps = self.encoder(pixels, deep=True)[0]
        return Output(logits=self.head(maps.mean((2, 3))))


def test_keyword_arguments_and_outputs_with_a_class(tmp_path):
    torch.manual_seed(0)
    model = Classifier().eval()
    captured = capture(model, (X,))
    assert not captured.untraced and list(captured.regions) == [""]
    module = binarize.apply(model, example_inputs=X).eval()
    assert sum(isinstance(m, BinaryConv2d) for m in module.modules()) == 4
    answer = module(X)
    assert type(answer) is Output and torch.equal(answer[0], answer["logits"])
    binarize.export(module, tmp_path / "net.onnx")
    (got,) = binarize.InferenceSession(tmp_path / "net.onnx").run(["logits"], {"input": X.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), answer["logits"].detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_plain_dicts_are_one_graph(kind):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.more = conv_bn(3, 8), conv_bn(8, 8)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return kind(maps=self.more(self.conv(x)))

    captured = capture(Net(), (X,))
    assert not captured.untraced and list(captured.regions) == [""]


def test_a_dict_with_a_class_keeps_it():
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.more = conv_bn(3, 8), conv_bn(8, 8)

        def forward(self, x: Tensor) -> Plain:
            return Plain(maps=self.more(self.conv(x)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = Inner(), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            if float(x.sum()) > 1e9:  # no graph holds this
                return x
            return self.head(self.inner(x).first().mean((2, 3)))

    module = binarize.apply(Net(), example_inputs=X)
    assert sum(isinstance(m, BinaryConv2d) for m in module.modules()) == 1
    assert module(X).shape == (2, 2)


def test_hooks_that_a_first_call_registers_are_registered_once():
    class Recording(nn.Module):
        """Collects what its stages give."""

        def __init__(self) -> None:
            super().__init__()
            self.stages, self.last = nn.ModuleList([conv_bn(3, 8), conv_bn(8, 8)]), nn.Conv2d(8, 4, 1)
            self.hooked, self.seen = False, []

        def forward(self, x: Tensor) -> Tensor:
            if not self.hooked:
                for stage in self.stages:
                    stage.register_forward_hook(lambda _, __, result: self.seen.append(result))
                self.hooked = True
            self.seen = []
            for stage in self.stages:
                x = stage(x)
            first, second = self.seen
            return self.last(second + first.mean())

    model = Recording()
    module = binarize.apply(model, example_inputs=X)
    assert module(X).shape == (2, 4, 16, 16)
    assert [len(stage._forward_hooks) for stage in model.stages] == [0, 0], "the user's model stays as it was"
