"""Nets that give, beside their logits, the float inputs of some of their convs."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.conv import _ConvNd

from binarize.nn import BinaryConv2d
from binarize.training.evaluate import logits_of
from binarize.training.losses import Answer


def attention_places(module: nn.Module) -> list[str]:
    """Paths of the convs whose inputs are compared: binary and wider than 1x1, or all binary ones if none is."""
    convs = {name: m for name, m in module.named_modules() if isinstance(m, BinaryConv2d)}
    wide = [name for name, conv in convs.items() if max(conv.kernel_size) > 1]
    return wide or list(convs)


def with_conv_inputs(module: GraphModule, places: Sequence[str]) -> GraphModule:
    """`module`, sharing its layers, as a graph that returns `(output, inputs of the convs at places)`.

    A conv that is called more than once counts with its first call. In a graph, unlike with hooks, the values are
    part of what `torch.compile` sees.
    """
    graph = copy.deepcopy(module.graph)
    first: dict[str, torch.fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            first.setdefault(str(node.target), node)
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    output.args = ((output.args[0], tuple(first[path].args[0] for path in places)),)
    return GraphModule(module, graph)


def answer_of(output: object) -> Answer:
    """A net's output, plain or from `with_conv_inputs`, in float32."""
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], tuple):
        return Answer(logits_of(output[0]).float(), output[1])
    return Answer(logits_of(output).float())


class Teacher:
    """A frozen net that answers like its student.

    Args:
        module: in eval mode; only read.
        places: conv paths whose inputs it gives.

    Raises:
        KeyError: `module` has no conv at one of `places`.
    """

    def __init__(self, module: nn.Module, places: Sequence[str] = ()) -> None:
        self.module, self.places = module, places
        layers = dict(module.named_modules())
        self._convs = [layers[path] for path in places]
        assert all(isinstance(conv, _ConvNd) for conv in self._convs)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Answer:
        seen: dict[nn.Module, Tensor] = {}

        def note(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.setdefault(conv, inputs[0])

        hooks = [conv.register_forward_pre_hook(note) for conv in self._convs]
        try:
            logits = logits_of(self.module(images)).float()
        finally:
            for hook in hooks:
                hook.remove()
        return Answer(logits, tuple(seen[conv] for conv in self._convs))
