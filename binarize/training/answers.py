"""Nets that give, beside their logits, where the float inputs of some of their convs are large."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from binarize.nn import BinaryConv
from binarize.training.evaluate import logits_of
from binarize.training.losses import Answer, attention_map


def attention_places(module: nn.Module) -> list[str]:
    """Paths of the convs whose inputs are compared: binary and wider than 1x1, or all binary ones if none is."""
    convs = {name: m for name, m in module.named_modules() if isinstance(m, BinaryConv)}
    wide = [name for name, conv in convs.items() if max(conv.kernel_size) > 1]
    return wide or list(convs)


@contextmanager
def answering(
    module: nn.Module, places: Sequence[str], call: Callable[[Tensor], Any]
) -> Iterator[Callable[..., Answer]]:
    """A function from images to `module`'s answer, which holds the attention maps of its convs' inputs at `places`.

    Args:
        module: whose convs are watched, by hooks that go at the end.
        places: paths of convs; one that is called more than once counts with its first call.
        call: how the images go through `module`: itself, or a compiled or distributed form of it.

    Raises:
        KeyError: `module` has no layer at one of `places`.
    """
    layers = dict(module.named_modules())
    seen: dict[str, Tensor] = {}

    def note(place: str, features: Tensor) -> None:
        if place not in seen:  # at once: the net may go on to write into the features
            seen[place] = attention_map(features)

    def watch(place: str) -> Any:
        conv = layers[place]
        assert isinstance(conv, _ConvNd)
        return conv.register_forward_pre_hook(lambda _, inputs: note(place, inputs[0]))

    def answer(images: Tensor) -> Answer:
        seen.clear()
        logits = logits_of(call(images)).float()
        return Answer(logits, tuple(seen[place] for place in places))

    handles = [watch(place) for place in places]
    try:
        yield answer
    finally:
        for handle in handles:
            handle.remove()
