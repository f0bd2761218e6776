"""Links and activations that no conv could take in become standard operators again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from binarize.nn import functional
from binarize.nn.ops import geometry_from_ints
from binarize.passes.base import PassContext, PassResult
from binarize.passes.lower_tools import OPS


def elastic_link(x: Tensor, gamma: Tensor, geometry: list[int]) -> Tensor:
    """What the custom op of this name computes, in torch functions that the next export sees through."""
    return functional.channelwise(gamma, x) * functional.elastic_link(x, geometry_from_ints(geometry))


PLAIN: dict[Any, Callable[..., Tensor]] = {
    OPS.elastic_link.default: elastic_link,
    OPS.rprelu.default: functional.rprelu,
}


class DecomposeUnfused:
    name = "decompose_unfused"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        nodes = [node for node in graph_module.graph.nodes if node.target in PLAIN]
        for node in nodes:
            node.target = PLAIN[node.target]
        return PassResult(graph_module, len(nodes))
