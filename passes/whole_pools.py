"""Pools whose window is the map, whatever its size, are reductions over the map.

Old models average with `F.avg_pool2d(x, x.size()[2:])`. A window is numbers, so that tracing this for maps of any size
would write down the size of the example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from binarize.nn.functional import at_every_size

Pool = Callable[..., Tensor]


def reduce_whole_maps(module: nn.Module) -> int:
    """Let every pool in the graphs of `module` reduce where its window is the map; returns how many pools there are."""
    changed = 0
    for graph_module in [m for m in module.modules() if isinstance(m, GraphModule)]:
        pools = [n for n in graph_module.graph.nodes if n.op == "call_function" and n.target in _POOLS]
        for node in pools:
            node.target = _POOLS[node.target]
        if pools:
            graph_module.recompile()
        changed += len(pools)
    return changed


def _reducing(pool: Pool, reduce: Pool, window: Callable[..., Any], dims: int) -> Pool:
    def reducing(input: Tensor, *args: Any, **named: Any) -> Any:
        if _is_whole(input, window(*args, **named), dims):
            return reduce(input, tuple(range(-dims, 0)), keepdim=True)
        return pool(input, *args, **named)

    return reducing


def _mean_window(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The window of an average pool that is a mean, without padding."""
    return kernel_size if padding == 0 and divisor_override is None else ()


def _max_window(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The window of a max pool that is a maximum and nothing else, without padding."""
    return kernel_size if padding == 0 and dilation == 1 and not return_indices else ()


def _is_whole(x: Tensor, kernel_size: int | Sequence[int], dims: int) -> bool:
    """Whether a window is `x`'s map of a size that is no number."""
    kernel = tuple(kernel_size) if isinstance(kernel_size, Sequence) else (kernel_size,) * dims
    if len(kernel) != dims or all(isinstance(extent, int) for extent in kernel):
        return False
    return all(at_every_size(extent == size) for extent, size in zip(kernel, x.shape[-dims:], strict=True))


_POOLS: dict[Any, Pool] = {
    F.avg_pool1d: _reducing(F.avg_pool1d, torch.mean, _mean_window, 1),
    F.avg_pool2d: _reducing(F.avg_pool2d, torch.mean, _mean_window, 2),
    F.avg_pool3d: _reducing(F.avg_pool3d, torch.mean, _mean_window, 3),
    F.max_pool1d: _reducing(F.max_pool1d, torch.amax, _max_window, 1),
    F.max_pool2d: _reducing(F.max_pool2d, torch.amax, _max_window, 2),
    F.max_pool3d: _reducing(F.max_pool3d, torch.amax, _max_window, 3),
}
