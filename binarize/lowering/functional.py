"""A trained module as a functional graph: what the lowering passes start from."""

from __future__ import annotations

import inspect
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen
from torch.utils._pytree import tree_structure

from binarize.errors import BinarizeError, UnsupportedModelError
from binarize.example_inputs import Form
from binarize.lowering.output_names import leaf_names
from binarize.lowering.quiet import quiet

Shapes = tuple[dict[int, object], ...]
"""Which dimensions of each input may differ, in `torch.export`'s terms."""

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
ATTENTION_RANK = 4
_AVERAGE_POOLS = {torch.ops.aten.avg_pool2d.default: 2, torch.ops.aten.avg_pool3d.default: 3}
_POOL_DEFAULTS: tuple[Any, ...] = ([], [0], False, True, None)
"""Stride, padding, ceiling mode, whether padding counts, divisor."""


def functional_graph(
    module: nn.Module, example_inputs: tuple[Tensor, ...], shapes: Shapes, form: Form | None = None
) -> GraphModule:
    """What `module` computes, in ATen operators and those of `torch.ops.binarize`, none of which writes to its inputs.

    Args:
        module: in eval mode.
        example_inputs: the tensors among what `module` takes, in order.
        shapes: which dimensions of the inputs may differ.
        form: what holds the tensors, if it is not a tuple of them alone; its constants become the graph's.

    Raises:
        UnsupportedModelError: `torch.export` cannot represent it; its reason is passed on.
    """
    code = _as_code(module, form)
    variadic = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(code.forward).parameters.values())
    described: Any = (shapes,) if variadic else shapes
    try:
        with quiet():
            program = torch.export.export(code, example_inputs, dynamic_shapes=described)
            graph_module = _without_writes(program)
    except BinarizeError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedModelError(f"torch.export cannot represent the model: {reason}") from error
    assert isinstance(graph_module, GraphModule)
    _leave_tensors(graph_module)
    _rename_constants(graph_module)
    _flatten_attention(graph_module)
    _average_by_window(graph_module)
    _reshape_views(graph_module)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def _without_writes(program: ExportedProgram) -> GraphModule:
    """`program` in operators that the passes know, none of which writes to its input.

    `run_decompositions` does that for every model and traces it twice more, which takes longer than all passes and
    `torch.export` together. Most CNNs hold nothing to be undone, or just what `_REWRITES` knows.
    """
    graph_module: GraphModule = program.module(check_guards=False)  # type: ignore[assignment]
    calls = [node for node in graph_module.graph.nodes if node.op == "call_function"]
    if all(_REWRITES.get(node.target, _stays)(node) for node in calls):
        return graph_module
    # What is rewritten by now is a copy; the program is as it was.
    return program.run_decompositions({}).module(check_guards=False)  # type: ignore[return-value]


def _stays(node: Node) -> bool:
    """Whether the operator is known to be good as it is."""
    return node.target in _PLAIN or getattr(node.target, "namespace", "") == "binarize"


def _drop(node: Node) -> bool:
    """In place of an operator that gives its input back, its input."""
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    node.graph.erase_node(node)
    return True


def _drop_dropout(node: Node) -> bool:
    return not node.args[2] and _drop(node)


def _freeze_norm(node: Node) -> bool:
    """A batch norm that normalises with what it has, as the operator that cannot write to its statistics."""
    x, weight, bias, mean, variance, training, momentum, epsilon, _ = node.args
    if training or mean is None or variance is None:
        return False
    graph, value = node.graph, node.meta["val"]
    with graph.inserting_before(node):
        norm = graph.call_function(_FROZEN_NORM, (x, weight, bias, mean, variance, momentum, epsilon))
        output = graph.call_function(operator.getitem, (norm, 0))
    norm.meta = {**node.meta, "val": (value, value.new_empty(0), value.new_empty(0))}
    output.meta = dict(node.meta)
    node.replace_all_uses_with(output)
    graph.erase_node(node)
    return True


def _as_reshape(node: Node) -> bool:
    """A flattening with its shape in numbers, where no more than one extent may differ."""
    shape = node.meta["val"].shape
    if sum(not isinstance(extent, int) for extent in shape) > 1 or 0 in shape:
        return False
    node.target = _ATEN.reshape.default
    node.args = (node.args[0], [extent if isinstance(extent, int) else -1 for extent in shape])
    return True


def _as_split(node: Node) -> bool:
    """Chunks as parts of a fixed size."""
    source, chunks, *axis = node.args
    assert isinstance(source, Node) and isinstance(chunks, int)
    extent = source.meta["val"].shape[axis[0] if axis else 0]
    if not isinstance(extent, int):
        return False
    node.target, node.args = _ATEN.split.Tensor, (source, -(-extent // chunks), *axis)
    return True


_ATEN = torch.ops.aten
_FROZEN_NORM = _ATEN._native_batch_norm_legit_no_training.default
_REWRITES: dict[Any, Callable[[Node], bool]] = {
    _ATEN.batch_norm.default: _freeze_norm,
    _ATEN.chunk.default: _as_split,
    _ATEN.contiguous.default: _drop,
    _ATEN.dropout.default: _drop_dropout,
    _ATEN.feature_dropout.default: _drop_dropout,
    _ATEN.flatten.using_ints: _as_reshape,
}
"""What makes an operator one that the passes know and that does not write; False where only decomposing does."""
_PLAIN = {
    operator.getitem,
    _ATEN.sym_size.int,
    *(operator.add, operator.sub, operator.mul, operator.floordiv),  # of sizes
    *(_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.conv3d.default),
    *(_ATEN.conv_transpose2d.input, _ATEN.conv_transpose3d.input),
    *(_ATEN.max_pool2d.default, _ATEN.avg_pool2d.default, _ATEN.adaptive_avg_pool2d.default),
    *(_ATEN.max_pool3d.default, _ATEN.avg_pool3d.default, _ATEN.adaptive_avg_pool3d.default),
    *(_ATEN.linear.default, _ATEN.layer_norm.default, _ATEN.mean.dim, _ATEN.cat.default, _ATEN.softmax.int),
    *(_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor),
    *(_ATEN.relu.default, _ATEN.leaky_relu.default, _ATEN.elu.default, _ATEN.gelu.default, _ATEN.silu.default),
    *(_ATEN.sigmoid.default, _ATEN.tanh.default, _ATEN.hardtanh.default, _ATEN.hardswish.default),
    *(_ATEN.hardsigmoid.default, _ATEN.clamp.default),
    *(_ATEN.permute.default, _ATEN.transpose.int, _ATEN.view.default, _ATEN.reshape.default, _ATEN.split.Tensor),
}
"""Functional operators that the passes know, or views, which are harmless where nothing is written."""


def _leave_tensors(graph_module: GraphModule) -> None:
    """Outputs that are no tensors, such as sizes, are left out: a file has no place for them."""
    output, codegen = graph_module.graph.output_node(), graph_module.graph._codegen
    leaves: Any = output.args[0]
    wanted = [isinstance(x, Node) and isinstance(x.meta.get("val"), Tensor) for x in leaves]
    if all(wanted) or not isinstance(codegen, _PyTreeCodeGen):
        return
    tensors = tuple(x for x, is_tensor in zip(leaves, wanted, strict=True) if is_tensor)
    if not tensors:
        raise UnsupportedModelError("the model gives no tensor", hint="its forward has to return one")
    structure = codegen.pytree_info.out_spec
    assert structure is not None  # it has leaves
    names = leaf_names(structure, wanted)
    output.args = (tensors,)
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=tree_structure(dict(zip(names, tensors, strict=True))))


def _as_code(module: nn.Module, form: Form | None) -> nn.Module:
    """`module` run by its code, not node by node: nodes hold lists as constants, and some functions write to lists.

    `torch.export` interprets whatever is a `GraphModule`; what this returns shares everything but the class. With a
    `form` it takes the tensors in it.
    """
    if isinstance(module, GraphModule):
        module = _twin(module, type(module).forward, vars(module))
    if form is None:
        return module
    # What is the module's own way to be called is left to it, hooks above all, or they would run twice.
    shared = {name: value for name, value in vars(module).items() if name != "forward" and not name.endswith("_hooks")}
    return _twin(module, lambda _, *tensors: module(*form.fill(tensors)), {**vars(nn.Module()), **shared})


def _twin(module: nn.Module, forward: Callable[..., Any], attributes: dict[str, Any]) -> nn.Module:
    """A plain module of the class name of `module` with another `forward`, and `attributes`, not copies of them."""
    twin: nn.Module = nn.Module.__new__(type(module.__class__.__name__, (nn.Module,), {"forward": forward}))
    twin.__dict__ = attributes
    return twin


def _flatten_attention(graph_module: GraphModule) -> None:
    """Attention over windows, which has more than one batch dimension, gets one: the exporter knows no other."""
    for node in graph_module.graph.find_nodes(op="call_function", target=ATTENTION):
        shape = node.meta["val"].shape
        if len(shape) <= ATTENTION_RANK or len(node.args) > 3 or "attn_mask" in node.kwargs:
            continue
        with graph_module.graph.inserting_before(node):
            for position, operand in enumerate(node.args[:3]):
                inner = operand.meta["val"].shape[1 - ATTENTION_RANK :]
                flat = graph_module.graph.call_function(torch.ops.aten.reshape.default, (operand, [-1, *inner]))
                node.update_arg(position, flat)
        with graph_module.graph.inserting_after(node):
            whole = graph_module.graph.call_function(torch.ops.aten.reshape.default, (node, [-1, *shape[1:]]))
        node.replace_all_uses_with(whole, delete_user_cb=lambda user, whole=whole: user is not whole)
        whole.meta["val"] = node.meta["val"]


def _average_by_window(graph_module: GraphModule) -> None:
    """A pool with a divisor of its own becomes an average over whole windows and a factor: the exporter drops it.

    With a ceiling the last windows end in zeros that are put behind the map.
    """
    for target, dims in _AVERAGE_POOLS.items():
        for node in graph_module.graph.find_nodes(op="call_function", target=target):
            settings: list[Any] = list(node.args)
            x, kernel, *others = settings
            stride, padding, ceiling, _, divisor = (*others, *_POOL_DEFAULTS[len(others) :])
            if divisor is None:
                continue
            kernel, stride, padding = (list(v) * (dims // len(v)) for v in (kernel, stride or kernel, padding))
            if ceiling:
                x = _pad_to_last_window(graph_module, node, kernel, stride, padding)
            with graph_module.graph.inserting_after(node):
                factor = math.prod(kernel) / divisor
                scaled = graph_module.graph.call_function(torch.ops.aten.mul.Tensor, (node, factor))
            scaled.meta = dict(node.meta)
            node.replace_all_uses_with(scaled, delete_user_cb=lambda user, scaled=scaled: user is not scaled)
            node.args = (x, kernel, stride, padding, False, True)


def _pad_to_last_window(
    graph_module: GraphModule, pool: Node, kernel: list[int], stride: list[int], padding: list[int]
) -> Node:
    """What `pool` reads, with zeros as far behind it as its last windows reach past its padding."""
    source: Any = pool.args[0]
    dims = len(kernel)
    amounts: list[int] = []
    for axis in reversed(range(dims)):  # as `pad` wants them
        size, result = (node.meta["val"].shape[axis - dims] for node in (source, pool))
        if not isinstance(size, int):
            raise UnsupportedModelError(
                "an average pool with a ceiling and a divisor of its own ends in windows that depend on the map's size",
                layer=pool.name,
                hint="take ceil_mode or divisor_override out of it, or name an .onnx file instead of a folder",
            )
        reach = (result - 1) * stride[axis] + kernel[axis]
        amounts += [0, max(0, reach - size - 2 * padding[axis])]
    with graph_module.graph.inserting_before(pool):
        padded = graph_module.graph.call_function(_ATEN.constant_pad_nd.default, (source, amounts, 0.0))
    padded.meta["val"] = torch.constant_pad_nd(source.meta["val"], amounts)
    return padded


def _reshape_views(graph_module: GraphModule) -> None:
    """Views become reshapes: they were planned on strides that a run need not have."""
    for node in graph_module.graph.nodes:
        if node.target in (_ATEN.view.default, _ATEN._unsafe_view.default):
            node.target = _ATEN.reshape.default


def _rename_constants(graph_module: GraphModule) -> None:
    """Give the constants that code made itself, such as a list it indexes with, names that a next export will not use.

    `torch.export` numbers them per module, anew each time, and does not look whether a name is taken.
    """
    count = itertools.count()
    for node in graph_module.graph.find_nodes(op="get_attr"):
        owner, _, name = node.target.rpartition(".")
        if name.startswith("lifted_tensor_"):
            target = f"constant_{next(count)}"
            graph_module.register_buffer(target, getattr(graph_module.get_submodule(owner), name), persistent=False)
            node.target = target
