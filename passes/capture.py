"""Capture: an `nn.Module` becomes an fx graph whose nodes know their shapes."""

from __future__ import annotations

import traceback
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node, Tracer
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from binarize.errors import UnsupportedModelError, UsageError

_NEVER_ENTERED = (_ConvNd, _NormBase, nn.Linear, nn.GroupNorm, nn.LayerNorm)


class ConvTracer(Tracer):
    """Enters every module but torch.nn's own, subclasses of its convs and norms, and the paths in `leaves`.

    Convolutions therefore always stay visible as modules, also those of subclasses defined outside torch.nn.
    """

    def __init__(self, leaves: frozenset[str] = frozenset()) -> None:
        super().__init__(autowrap_functions=())
        self.leaves = leaves
        self.innermost = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, _NEVER_ENTERED)
            or module_qualified_name in self.leaves
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before, self.innermost = self.innermost, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.innermost = before  # not restored on an exception, so that it names where tracing stopped
        return result


def capture(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> GraphModule:
    """Trace `model` in eval mode and record the shape of every value.

    Submodules that contain no convolution and cannot be traced become leaves: they are called as they are.
    The returned graph shares `model`'s modules and parameters; in-place activations are made out-of-place, since
    a shortcut that is taken before one would read the changed tensor. The graph must then compute on
    `example_inputs` what `model` computed.

    Raises:
        UnsupportedModelError: names the module and the source line where tracing stopped, or says that the model
            counts on in-place changes.
        UsageError: the example inputs do not fit the model.
    """
    training = model.training
    model.eval()
    expected = _run(model, example_inputs)
    for module in model.modules():
        if getattr(module, "inplace", None) is True:
            module.inplace = False  # type: ignore[assignment]
    graph, tracer = _trace(model)
    graph_module = GraphModule(tracer.root, graph, type(model).__name__)
    _drop_in_place(graph_module.graph)
    graph_module.recompile()
    _check_equal(expected, record_shapes(graph_module, example_inputs), type(model).__name__)
    model.train(training)
    return graph_module.train(training)


def _trace(model: nn.Module) -> tuple[Graph, ConvTracer]:
    leaves: set[str] = set()
    while True:
        tracer = ConvTracer(frozenset(leaves))
        try:
            return tracer.trace(model), tracer
        except Exception as error:
            culprit = _convless_ancestor(model, tracer.innermost)
            if culprit and culprit not in leaves:
                leaves.add(culprit)
                continue
            raise _untraceable(model, tracer.innermost, error) from error


def _convless_ancestor(model: nn.Module, path: str) -> str | None:
    """The module at `path`, if no convolution lives in it."""
    if not path:
        return None
    module = model.get_submodule(path)
    return None if any(isinstance(m, _ConvNd) for m in module.modules()) else path


def _untraceable(model: nn.Module, path: str, error: Exception) -> UnsupportedModelError:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    where = f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
    return UnsupportedModelError(
        f"{type(model).__name__} cannot be traced{where}: {type(error).__name__}: {_first_line(error)}",
        layer=path or None,
        hint="data-dependent control flow must move out of the part that is converted; "
        "convert a submodule (the backbone, say) with binarize.apply instead",
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


_OUT_OF_PLACE = {torch.relu_: torch.relu, F.relu_: F.relu, "relu_": "relu", "clamp_": "clamp", "add_": "add"}


def _drop_in_place(graph: Graph) -> None:
    """Functional activations become out-of-place in every spelling, for the reason `capture` gives."""
    for node in graph.nodes:
        if node.kwargs.get("inplace") is True:
            node.update_kwarg("inplace", False)
        if node.target in (F.relu, F.relu6, F.silu, F.mish, F.hardswish) and len(node.args) > 1:
            node.update_arg(1, False)
        node.target = _OUT_OF_PLACE.get(node.target, node.target)


class _ShapeRecorder(Interpreter):
    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


def record_shapes(graph_module: GraphModule, example_inputs: tuple[Tensor, ...]) -> Any:
    """Run the graph once and put `meta["shape"]` on every tensor-valued node; returns the graph's output."""
    with torch.no_grad():
        return _ShapeRecorder(graph_module).run(*(x.clone() for x in example_inputs))


def _run(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Any:
    try:
        with torch.no_grad():
            return model(*(x.clone() for x in example_inputs))
    except Exception as error:
        shapes = ", ".join(str(list(x.shape)) for x in example_inputs)
        raise UsageError(
            f"the model does not run on example inputs of shape {shapes}: {_first_line(error)}",
            hint="pass the right size: example_inputs=..., or --input-size C,H,W",
        ) from error


def _check_equal(expected: Any, found: Any, name: str) -> None:
    pairs = zip(tree_leaves(expected), tree_leaves(found), strict=False)
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)]
    if not all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in tensors):
        raise UnsupportedModelError(
            f"{name} computes something else once traced: it counts on in-place changes or on changing state",
            hint="write activations that other branches read as out-of-place: inplace=False",
        )
