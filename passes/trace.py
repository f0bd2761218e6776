"""Trace: one module becomes an fx graph that holds in train and in eval mode, or the reason why it cannot."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from binarize.errors import UnsupportedModelError
from binarize.nn import Region, TrainingFlag
from binarize.passes.frozen_norms import is_frozen_batch_norm
from binarize.passes.graph_tools import add_module

_VAR_KEYWORD, _VAR_POSITIONAL = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL

PLAIN_DICTS = (dict, OrderedDict)
"""What a trace gives back as a plain dict. Those of other classes keep theirs."""

_NEVER_ENTERED = (_ConvNd, _NormBase, nn.Linear, nn.GroupNorm, nn.LayerNorm)


class Untraceable(UnsupportedModelError):
    """A module that fx cannot trace; `layer` is the path, inside it, of the spot."""


class ConvTracer(Tracer):
    """Enters every module but torch.nn's own, subclasses of its convs and norms, and the paths in `leaves`.

    Convolutions therefore always stay visible as modules, also those of subclasses defined outside torch.nn.

    Args:
        leaves: paths that are called as they are.
        constants: arguments of the root's `forward` with a fixed value: no tensors, or left out by the caller.
    """

    def __init__(self, leaves: frozenset[str] = frozenset(), constants: Mapping[str, Any] | None = None) -> None:
        super().__init__(autowrap_functions=())
        self.leaves = leaves
        self.constants = constants or {}
        self.innermost = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or module_qualified_name in self.leaves

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        before, self.innermost = self.innermost, path
        if has_hooks(m) and not self.is_leaf_module(m, path):
            raise RuntimeError("a hook is registered on it")
        result = super().call_module(m, forward, args, kwargs)
        self.innermost = before  # not restored on an exception, so that it names where tracing stopped
        return result

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        kinds = {parameter.kind for parameter in inspect.signature(root_fn).parameters.values()}
        if _VAR_KEYWORD in kinds and _VAR_POSITIONAL not in kinds:
            function, args = self._args_by_name(root_fn)
        else:
            function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        return function, [self._settled(arg) for arg in args]

    def _args_by_name(self, root_fn: Any) -> tuple[Any, list[Any]]:
        """The named arguments of a function that takes others, too, and gets none of those.

        fx changes such a function's code, which is that of a decorator around it, where there is one.
        """
        first, *others = [p for p in inspect.signature(root_fn).parameters.values() if p.kind is not _VAR_KEYWORD]
        args = [
            self.create_proxy("placeholder", p.name, () if p.default is p.empty else (p.default,), {}) for p in others
        ]
        by_position = sum(p.kind is not inspect.Parameter.KEYWORD_ONLY for p in (first, *others))

        def call(*values: Any) -> Any:
            named = zip((p.name for p in others[by_position - 1 :]), values[by_position:], strict=True)
            return root_fn(*values[:by_position], **dict(named))

        return call, [self.root, *args]

    def create_arg(self, a: Any) -> Any:
        """Dicts with a class of their own, such as the outputs of Hugging Face's models, keep it; fx drops it."""
        if not isinstance(a, dict) or type(a) in PLAIN_DICTS:
            return super().create_arg(a)
        if dataclasses.is_dataclass(a):
            values = {f.name: super(ConvTracer, self).create_arg(getattr(a, f.name)) for f in dataclasses.fields(a)}
            return self.create_node("call_function", type(a), (), values)
        return self.create_node("call_function", type(a), (super().create_arg(dict(a)),), {})

    def _settled(self, arg: Any) -> Any:
        """The constant that stands for argument `arg`, if there is one; the graph asserts that it is passed."""
        if not isinstance(arg, Proxy) or arg.node.target not in self.constants:
            return arg
        name, value = str(arg.node.target), self.constants[str(arg.node.target)]
        compare = operator.is_ if value is None or isinstance(value, bool) else operator.eq
        same = self.create_proxy("call_function", compare, (arg, value), {})
        self.create_proxy("call_function", torch._assert, (same, f"{name} was {value!r} when this was traced"), {})
        return value


def is_leaf(module: nn.Module) -> bool:
    """Whether `module` is one call: torch.nn's own (no containers), subclasses of its convs and norms, frozen norms."""
    own = type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))
    return (
        isinstance(module, _NEVER_ENTERED)
        or is_frozen_batch_norm(module)
        or (own and not isinstance(module, nn.Sequential))
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether a forward or backward hook is registered on `module`."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


def _are_hooks(name: str, attribute: Any) -> bool:
    return name.endswith("hooks") and isinstance(attribute, dict)


def holds(module: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> bool:
    """Whether `module` is, or has somewhere inside, a module of one of `kinds`."""
    return any(isinstance(m, kinds) for m in module.modules())


def trace(module: nn.Module, constants: Mapping[str, Any]) -> Region:
    """`module`'s graph; parts that hold no convolution and cannot be traced are called as they are.

    Where eval and train mode differ only in a flag that a function gets, the flag is read when the graph runs.

    Raises:
        Untraceable: says why and, with the source line, where.
    """
    leaves: set[str] = set()
    while True:
        try:
            evaluated, trained = (_trace(module, leaves, constants, training) for training in (False, True))
            return _merge(module, evaluated, trained)
        except Untraceable as stop:
            if not stop.layer or stop.layer in leaves or holds(module.get_submodule(stop.layer), _ConvNd):
                raise
            leaves.add(stop.layer)


def _trace(module: nn.Module, leaves: set[str], constants: Mapping[str, Any], training: bool) -> Graph:
    tracer = ConvTracer(frozenset(leaves), constants)
    before = {m: dict(vars(m)) for m in module.modules()}
    hooks = [(own, dict(own)) for m in before.values() for name, own in m.items() if _are_hooks(name, own)]
    module.train(training)
    try:
        return tracer.trace(module)
    except Exception as error:
        raise Untraceable(_reason(error), layer=tracer.innermost) from error
    finally:
        for m, attributes in before.items():
            made = {k: v for k, v in vars(m).items() if k not in attributes and isinstance(v, Tensor)}
            object.__setattr__(m, "__dict__", attributes | made)  # what `forward` kept of the trace is no value
        for own, registered in hooks:  # some forwards register hooks at their first call
            own.clear()
            own.update(registered)


def _reason(error: Exception) -> str:
    """What fx says, and the source line outside torch that it says it about."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    where = f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"


def first_line(error: Exception) -> str:
    """The first line of what `error` says, or its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)


_FLAG = object()
"""Stands for a flag that is False in eval and True in train mode."""


class _Differs(Exception):
    """Two graphs' values that no flag explains."""


def _merge(module: nn.Module, evaluated: Graph, trained: Graph) -> Region:
    """The graph of both modes.

    Raises:
        Untraceable: the modes differ in more than flags; `layer` is the innermost module of the first difference.
    """
    twins: dict[Node, Node] = {}
    flagged: list[tuple[Node, Any, Any]] = []
    for node, twin in zip_longest(evaluated.nodes, trained.nodes):
        try:
            if node is None or twin is None or not _same_call(module, node, twin):
                raise _Differs
            args, kwargs = _match(node.args, twin.args, twins), _match(node.kwargs, twin.kwargs, twins)
        except _Differs:
            raise _mode_difference(module, twin or node) from None
        if args != node.args or kwargs != node.kwargs:
            flagged.append((node, args, kwargs))
        twins[twin] = node
    region = Region(module, evaluated, type(module).__name__)
    if flagged:
        _read_flag(region, flagged)
    _drop_in_place(region.graph)
    region.recompile()
    return region


def _same_call(module: nn.Module, node: Node, twin: Node) -> bool:
    if node.op == twin.op == "get_attr":
        ours, theirs = (operator.attrgetter(str(n.target))(module) for n in (node, twin))
        return ours is theirs or (ours.shape == theirs.shape and (ours.is_meta or torch.equal(ours, theirs)))
    return node.op == twin.op and node.target == twin.target


def _match(ours: Any, theirs: Any, twins: dict[Node, Node]) -> Any:
    """`ours`, with `_FLAG` where it is False and `theirs` is True."""
    if isinstance(ours, Node):
        if twins.get(theirs) is ours:
            return ours
    elif type(ours) is not type(theirs):
        raise _Differs
    elif isinstance(ours, tuple | list):
        if len(ours) == len(theirs):
            return type(ours)(_match(a, b, twins) for a, b in zip(ours, theirs, strict=True))
    elif isinstance(ours, dict):
        if ours.keys() == theirs.keys():
            return {key: _match(ours[key], theirs[key], twins) for key in ours}
    elif isinstance(ours, slice):
        parts = (_match(getattr(ours, n), getattr(theirs, n), twins) for n in ("start", "stop", "step"))
        return slice(*parts)
    elif ours is False and theirs is True:
        return _FLAG
    elif ours == theirs:
        return ours
    raise _Differs


def _mode_difference(module: nn.Module, node: Node) -> Untraceable:
    stack = node.meta.get("nn_module_stack") or {}
    path = next((str(entry[0]) for entry in reversed(stack.values())), "")
    kind = type(module.get_submodule(path))
    return Untraceable(f"{kind.__name__} runs other code in train mode than in eval mode{_home(kind)}", layer=path)


def _home(kind: type) -> str:
    try:
        return f" at {inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind.forward)[1]}"  # type: ignore[attr-defined]
    except (OSError, TypeError):
        return ""


def _read_flag(region: Region, flagged: list[tuple[Node, Any, Any]]) -> None:
    """Put the module's mode where `_FLAG` is."""
    graph = region.graph
    first = next(node for node in graph.nodes if node.op != "placeholder")
    path = add_module(region, "training_flag", TrainingFlag().train(region.training))
    with graph.inserting_before(first):
        flag = graph.call_module(path, ())
    for node, args, kwargs in flagged:
        node.args = _put_flag(args, flag)
        node.kwargs = _put_flag(kwargs, flag)


def _put_flag(value: Any, flag: Node) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_put_flag(v, flag) for v in value)
    if isinstance(value, dict):
        return {key: _put_flag(v, flag) for key, v in value.items()}
    return flag if value is _FLAG else value


_OUT_OF_PLACE: dict[Any, Any] = {
    torch.relu_: torch.relu,
    F.relu_: F.relu,
    "relu_": "relu",
    "clamp_": "clamp",
    "add_": "add",
    "mul_": "mul",
    operator.iadd: operator.add,
    operator.imul: operator.mul,
}


def _drop_in_place(graph: Graph) -> None:
    """In-place changes become out-of-place in every spelling: a link taken before one would read the changed tensor."""
    for node in graph.nodes:
        if node.kwargs.get("inplace") is True:
            node.update_kwarg("inplace", False)
        if node.target in (F.relu, F.relu6, F.silu, F.mish, F.hardswish) and len(node.args) > 1:
            node.update_arg(1, False)
        node.target = _OUT_OF_PLACE.get(node.target, node.target)
