"""Links and activations that no conv could take in become standard operators again, and adaptive pools of any map.

The exporter's own form of an adaptive pool is that of the example's size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from binarize.nn import functional
from binarize.nn.ops import geometry_from_ints
from binarize.passes.base import PassContext, PassResult
from binarize.passes.layout_rules import ATEN, is_fixed
from binarize.passes.lower_tools import OPS, is_item


def elastic_link(x: Tensor, gamma: Tensor, geometry: list[int]) -> Tensor:
    """What the custom op of this name computes, in torch functions that the next export sees through."""
    return functional.channelwise(gamma, x) * functional.elastic_link(x, geometry_from_ints(geometry))


PLAIN: dict[Any, Callable[..., Tensor]] = {
    OPS.elastic_link.default: elastic_link,
    OPS.rprelu.default: functional.rprelu,
}
ADAPTIVE_POOLS: dict[Any, Callable[..., Any]] = {
    ATEN.adaptive_avg_pool1d.default: functional.adaptive_mean,
    ATEN.adaptive_avg_pool2d.default: functional.adaptive_mean,
    ATEN._adaptive_avg_pool2d.default: functional.adaptive_mean,
    ATEN.adaptive_avg_pool3d.default: functional.adaptive_mean,
    ATEN._adaptive_avg_pool3d.default: functional.adaptive_mean,
    ATEN.adaptive_max_pool2d.default: functional.adaptive_max,
    ATEN.adaptive_max_pool3d.default: functional.adaptive_max,
}


class DecomposeUnfused:
    name = "decompose_unfused"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        nodes = [node for node in graph_module.graph.nodes if node.target in PLAIN]
        pools = [node for node in graph_module.graph.nodes if node.target in ADAPTIVE_POOLS and _pools_any_map(node)]
        for node in nodes + pools:
            node.target = (PLAIN | ADAPTIVE_POOLS)[node.target]
        return PassResult(graph_module, len(nodes + pools))


def _pools_any_map(pool: Node) -> bool:
    """Whether the map may have any size, and nobody asks where a maximum was."""
    return not is_fixed(pool.args[0]) and not any(is_item(user, 1) for user in pool.users)
