"""Capture: run a model once, and turn its largest traceable parts into fx graphs on the way.

Where one graph can hold the whole model there is one region, at path "". Else the code that cannot be traced stays
the user's own, and the modules it calls are captured one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map

from binarize.errors import UsageError
from binarize.nn import BinaryConv, LayerList, Region
from binarize.nn.modules import evaluating
from binarize.passes.recording import Recording
from binarize.passes.trace import PLAIN_DICTS, Untraceable, first_line, holds, is_leaf, trace

CONV = "conv"
"""What a convolution is called inside a region that holds nothing else."""


@dataclass
class Captured:
    """A model taken apart.

    Attributes:
        model: the model; `regions` share its leaf modules.
        regions: by the path of the module each stands for.
        untraced: why a module that holds convolutions has code that no region covers, by path.
        recording: the dataflow of the whole model.
    """

    model: nn.Module
    recording: Recording
    regions: dict[str, Region] = field(default_factory=dict)
    untraced: dict[str, str] = field(default_factory=dict)

    def put_back(self) -> None:
        """Let every region take the place of the module it stands for."""
        modes = {path: module.training for path, module in self.model.named_modules()}
        for path, region in self.regions.items():
            module = self.model.get_submodule(path)
            if isinstance(module, _ConvNd):
                _attach(module, region)
            else:
                region.become(module)
        for path, module in self.model.named_modules():
            module.training = modes[next(p for p in _ancestry(path) if p in modes)]


def capture(model: nn.Module, example_inputs: tuple[Any, ...]) -> Captured:
    """Run `model` once in eval mode; record what runs, and trace the largest parts that can be traced.

    The regions share `model`'s modules and parameters; their in-place activations are made out-of-place, since
    a shortcut that is taken before one would read the changed tensor. A region must compute on the values it got
    what its module computed.

    Raises:
        UsageError: the example inputs do not fit the model.
    """
    captured = Captured(model, Recording(model))
    with evaluating(model):
        _Capturing(captured).run(example_inputs)
    return captured


class _Capturing:
    """Intercepts the calls of a model's modules."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.recording = captured.recording
        self.paths = {module: path for path, module in captured.model.named_modules()}
        self.call = nn.Module.__call__

    def run(self, example_inputs: tuple[Any, ...]) -> None:
        def intercepted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.intercept(module, args, kwargs)

        inputs = _cloned(example_inputs)
        try:
            with torch.no_grad(), self.recording.watch(), mock.patch.object(nn.Module, "__call__", intercepted):
                self.captured.model(*inputs)
        except Exception as error:
            _check_number(self.captured.model, example_inputs)
            shapes = ", ".join(str(list(x.shape)) for x in tree_leaves(example_inputs) if isinstance(x, Tensor))
            raise UsageError(
                f"the model does not run on example inputs of shape {shapes}: {first_line(error)}",
                hint="pass the right size: example_inputs=..., or --input-size C,H,W",
            ) from error

    def intercept(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self.paths.get(module)
        if path is None or not self.recording.watching:
            return self.call(module, *args, **kwargs)
        if self._may_be_region(path, module):
            try:
                with self.recording.quiet(), _forward(module, partial(self._run_region, path, module)):
                    return self.call(module, *args, **kwargs)
            except Untraceable as stop:
                where = ".".join(filter(None, (path, stop.layer)))
                self.captured.untraced[path] = f"{where or type(module).__name__}: {stop.message}"
        if not is_leaf(module):
            return self.call(module, *args, **kwargs)
        with self.recording.quiet():
            result = self.call(module, *args, **kwargs)
        self.recording.add_module(path, module, args, kwargs, result)
        return result

    def _may_be_region(self, path: str, module: nn.Module) -> bool:
        if path in self.captured.regions:
            return True
        if path in self.captured.untraced or "forward" in vars(module):
            return False
        return isinstance(module, _ConvNd) or (not is_leaf(module) and holds(module, (_ConvNd, nn.Linear)))

    def _run_region(self, path: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The region's result; captures it at its first call.

        Raises:
            Untraceable: `module` has no graph, or one that computes something else.
        """
        del vars(module)["forward"]  # the region of a convolution calls the convolution
        constants, values = _arguments(module, args, kwargs)
        known = self.captured.regions.get(path)
        if known is not None:
            return _RegionRun(known, self.recording).run(*values)
        region = _conv_region(module, path) if isinstance(module, _ConvNd) else _traced(module, path, constants)
        expected = type(module).forward(module, *_cloned(args), **_cloned(kwargs))
        in_place = [m for m in region.modules() if getattr(m, "inplace", None) is True]
        for activation in in_place:
            activation.inplace = False  # type: ignore[assignment]
        mark = self.recording.mark()
        try:
            result = _RegionRun(region, self.recording).run(*values)
            _check_equal(expected, result)
        except Exception as error:
            self.recording.forget(mark)
            for activation in in_place:
                activation.inplace = True  # type: ignore[assignment]
            raise error if isinstance(error, Untraceable) else Untraceable(first_line(error)) from error
        self.captured.regions[path] = region
        return result


def _check_number(model: nn.Module, example_inputs: tuple[Any, ...]) -> None:
    """Raise UsageError if `model` takes more or fewer inputs than there are."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # compiled code has none
        return
    try:
        signature.bind(*example_inputs)
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        raise UsageError(
            f"{type(model).__name__}.forward({takes}) cannot be called with {len(example_inputs)} input(s): {error}",
            hint="in Python, binarize.apply(model, (first, second, ...)) and binarize.export take any number of them; "
            "the command line and data sets give one",
        ) from error


class _RegionRun(Interpreter):
    """Runs a region, records it, and leaves `meta["shape"]` on every node with a tensor."""

    def __init__(self, region: Region, recording: Recording) -> None:
        super().__init__(region)
        self.recording = recording

    def fetch_args_kwargs_from_env(self, n: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(_mutable(arg) for arg in args), {name: _mutable(value) for name, value in kwargs.items()}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        if n.op.startswith("call_"):
            self.recording.add_region_node(n, *self.fetch_args_kwargs_from_env(n), result)
        return result


def _mutable(value: Any) -> Any:
    """fx's read-only lists as the lists that the generated code passes; some functions write into theirs."""
    return [_mutable(v) for v in value] if isinstance(value, list) else value


@contextmanager
def _forward(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """`function` in the place of `module.forward`, so that its hooks run around it."""
    vars(module)["forward"] = function
    try:
        yield
    finally:
        vars(module).pop("forward", None)


def _traced(module: nn.Module, path: str, constants: dict[str, Any]) -> Region:
    """`module` as a region whose calls know their paths in the whole model."""
    region = trace(module, constants)
    _keep_the_rest(region, module)
    _keep_lists(region, module)
    for node in region.graph.nodes:
        if node.op == "call_module":
            node.meta["path"] = ".".join(filter(None, (path, str(node.target))))
    return region


def _conv_region(conv: _ConvNd, path: str) -> Region:
    """A convolution that code which cannot be traced calls."""
    graph = Graph()
    call = graph.call_module(CONV, (graph.placeholder("input"),))
    call.meta["path"] = path
    graph.output(call)
    return Region(nn.ModuleDict({CONV: conv}), graph, type(conv).__name__)


def _arguments(module: nn.Module, args: Any, kwargs: Any) -> tuple[dict[str, Any], list[Any]]:
    """A call's arguments that are no tensors, by name, and all arguments in the order of `module`'s signature."""
    signature = inspect.signature(type(module).forward)
    bound = signature.bind(module, *args, **kwargs)
    bound.apply_defaults()
    constants, values = {}, []
    for name, value in list(bound.arguments.items())[1:]:
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            if value:
                raise Untraceable("it is called with keyword arguments that its signature does not name")
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            values += value
        else:
            values.append(value)
            if value is None or isinstance(value, bool | int | float | str):
                constants[name] = value
    return constants, values


def _attach(conv: _ConvNd, region: Region) -> None:
    """Give a binary conv what passes put behind it; code that cannot be traced goes on calling the conv."""
    if not isinstance(conv, BinaryConv):
        return
    graph = region.graph
    placeholder, call = (next(n for n in graph.nodes if n.op == op) for op in ("placeholder", "call_module"))
    with graph.inserting_after(placeholder):
        value = graph.placeholder("value")
    call.replace_all_uses_with(value)
    graph.erase_node(call)
    region.delete_submodule(CONV)
    region.recompile()
    conv.tail = region


def _check_equal(expected: Any, found: Any) -> None:
    if isinstance(expected, dict) and type(expected) not in PLAIN_DICTS and type(found) is not type(expected):
        raise Untraceable(f"what it returns, a {type(expected).__name__}, is a {type(found).__name__} once traced")
    pairs = zip(tree_leaves(expected), tree_leaves(found), strict=True)
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)]
    for a, b in tensors:
        if a.shape != b.shape or not (a.is_meta or torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)):
            raise Untraceable(
                "it computes something else once traced: it counts on in-place changes or on changing state"
            )


def _cloned(values: Any) -> Any:
    return tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, values)


def _keep_the_rest(region: Region, module: nn.Module) -> None:
    """Add to `region` what `module` has and the graph does not use; a checkpoint of either fits the other."""
    for path, part in module.named_modules():
        owned = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        if not owned:
            continue
        try:
            home = region.get_submodule(path)
        except AttributeError:
            region.add_submodule(path, part)
            continue
        for name, _ in owned:
            if not hasattr(home, name):
                kept = part._parameters if name in part._parameters else part._buffers
                getattr(home, "_parameters" if name in part._parameters else "_buffers")[name] = kept[name]
                if name in part._non_persistent_buffers_set:
                    home._non_persistent_buffers_set.add(name)


def _keep_lists(region: Region, module: nn.Module) -> None:
    """fx makes plain modules of what holds the layers it calls; those that were lists stay indexable."""
    holders = dict(region.named_modules(remove_duplicate=False))
    for path, part in module.named_modules(remove_duplicate=False):
        holder = holders.get(path)
        if isinstance(part, nn.Sequential | nn.ModuleList) and type(holder) is nn.Module:
            LayerList.stand_in(holder, part)


def _ancestry(path: str) -> Iterator[str]:
    """`path` and what it lies in, up to the model itself."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""
