"""Give every binary conv a batch norm of its own: `conv -> BN`, inserted where there is none.

A binary conv's output has another scale and offset than the float one's; only a BN behind it lets training start
(Larq's guide for binary architectures). `training.calibrate` gives the inserted ones the float conv's statistics.
"""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from binarize.nn import BinaryConv
from binarize.passes.base import PassContext, PassResult
from binarize.passes.graph_tools import add_module, calls_module, insert_module_call, path_of

SUFFIX = "_bn"
"""What an inserted batch norm's path adds to its conv's; a model's own may end alike."""

_BATCH_NORMS: dict[int, type[_BatchNorm]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

MARK = "inserted_after"
"""Attribute of an inserted batch norm: its conv's path."""


class InsertBatchNorm:
    name = "insert_batch_norm"

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult:
        inserted: dict[str, str] = {}
        calls = [node for node in graph_module.graph.nodes if calls_module(node, BinaryConv)]
        for node in calls:
            if batch_norm_after(node) is not None or _normalised_elsewhere(node, context):
                continue
            path = str(node.target)
            if path not in inserted:
                conv = graph_module.get_submodule(path)
                assert isinstance(conv, BinaryConv)
                like = conv.weight
                norm = _BATCH_NORMS[conv.dims](conv.out_channels, device=like.device, dtype=like.dtype).train(
                    conv.training
                )
                setattr(norm, MARK, path_of(node))
                inserted[path] = add_module(graph_module, path + SUFFIX, norm)
            call = insert_module_call(graph_module, node, inserted[path], node)
            node.replace_all_uses_with(call, delete_user_cb=lambda user, call=call: user is not call)
        return PassResult(graph_module, len(inserted))


def _normalised_elsewhere(conv: Node, context: PassContext) -> bool:
    """Whether code that no graph holds calls a batch norm on `conv`'s value, and nothing else does."""
    runs = context.recording.of(conv) if context.recording is not None else []
    return bool(runs) and all(batch_norm_after(run) is not None for run in runs)


def batch_norm_after(conv: Node) -> Node | None:
    """The batch norm that alone consumes `conv`'s value, if that is how it is used."""
    users = list(conv.users)
    return users[0] if len(users) == 1 and calls_module(users[0], _BatchNorm) else None
