"""Why a convolution stays float: the rules, in order of precedence, and the traits that `--keep` and `--only` name.

Rules look at a layer and at the dataflow around it, never at a model's name. docs/plan.md has them as a table.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from binarize.config import SurgeryConfig
from binarize.errors import UnsupportedModelError, UsageError
from binarize.nn.binary_conv import conv_geometry
from binarize.passes.blocks import Block, enclosing_blocks
from binarize.passes.graph_tools import (
    MUL_TARGETS,
    calls_function,
    calls_module,
    dataflow,
    is_gate_function,
    is_weighted,
    shape_of,
    walk_forward,
)
from binarize.passes.probe import Probe

RULE_PREFIX = "rule:"
"""Before the name of a rule or trait where a glob could stand."""


@dataclass(frozen=True)
class GraphFacts:
    """A model's graph with the answers that rules share."""

    graph: Graph
    surgery: SurgeryConfig
    probe: Probe | None = None

    @cached_property
    def weighted(self) -> set[Node]:
        """Every convolution and linear layer, in any spelling."""
        return {node for node in self.graph.nodes if is_weighted(node)}

    @cached_property
    def flow(self) -> nx.DiGraph:
        return dataflow(self.graph)

    @cached_property
    def behind_weights(self) -> set[Node]:
        """What depends on a weighted layer."""
        return _reached(self.graph.nodes, self.flow.predecessors, self.weighted)

    @cached_property
    def before_weights(self) -> set[Node]:
        """What a weighted layer depends on."""
        return _reached(reversed(self.graph.nodes), self.flow.successors, self.weighted)

    @cached_property
    def blocks(self) -> dict[Node, Block]:
        return enclosing_blocks(self.graph, self.flow, self.weighted)

    @cached_property
    def batch(self) -> int:
        """Examples in the inputs that gave the graph its shapes."""
        shapes = (shape_of(node) for node in self.graph.nodes if node.op == "placeholder")
        return next((shape[0] for shape in shapes if shape), 1)

    @cached_property
    def image_rank(self) -> int:
        """Dimensions of the map that the first convolution reads."""
        first = next((n for n in self.graph.nodes if calls_module(n, _ConvNd)), None)
        return 0 if first is None else len(shape_of(first.all_input_nodes[0]) or ())


def _reached(nodes: Iterable[Node], neighbours: Callable[[Node], Iterator[Node]], starts: set[Node]) -> set[Node]:
    """The `nodes`, in order, that have one of `starts` on a way through `neighbours`."""
    found: set[Node] = set()
    for node in nodes:
        if any(other in starts or other in found for other in neighbours(node)):
            found.add(node)
    return found


@dataclass(frozen=True)
class Site:
    """A convolution, or a linear layer that counts as one, with all its calls."""

    path: str
    module: nn.Module
    calls: tuple[Node, ...]
    facts: GraphFacts

    def all_calls(self, question: Callable[[Node], bool]) -> bool:
        return all(question(call) for call in self.calls)

    @property
    def is_linear(self) -> bool:
        return isinstance(self.module, nn.Linear)

    @property
    def channels(self) -> tuple[int, int]:
        """In and out."""
        if isinstance(self.module, nn.Linear):
            return self.module.in_features, self.module.out_features
        assert isinstance(self.module, _ConvNd)
        return self.module.in_channels, self.module.out_channels

    @property
    def kind(self) -> str:
        """`linear`, `depthwise`, `grouped`, `transposed`, or the kernel such as `3x3`."""
        if self.is_linear:
            return "linear"
        assert isinstance(self.module, _ConvNd)
        if self.module.transposed:
            return "transposed"
        if self.module.groups > 1:
            return "depthwise" if self.module.groups == self.module.in_channels else "grouped"
        kernel = tuple(self.module.kernel_size)
        return "x".join(map(str, kernel)) if len(kernel) > 1 else f"{kernel[0]}"

    @property
    def block(self) -> Block | None:
        return self.facts.blocks.get(self.calls[0]) if self.calls else None


@dataclass(frozen=True)
class Rule:
    """A reason to keep a layer float.

    Attributes:
        name: what `Decision.rule`, `--keep rule:NAME` and `--only rule:NAME` say.
        reason: for people.
        applies: whether it does.
        planned: whether `--strict` accepts it.
    """

    name: str
    reason: str
    applies: Callable[[Site], bool]
    planned: bool = False


def transposed(site: Site) -> bool:
    """It spreads each input over a window; the packed operator gathers."""
    return isinstance(site.module, _ConvTransposeNd)


def subclass(site: Site) -> bool:
    """A class of its own may pad, or change its input or its geometry, by rules that have no packed form."""
    if site.is_linear or transposed(site):
        return False
    if "forward" in vars(site.module):  # patched on the object
        return True
    try:
        conv_geometry(site.module)  # type: ignore[arg-type]
    except UnsupportedModelError:
        return True
    return False


def keep(site: Site) -> bool:
    """`--keep`: globs on layer paths, or names of rules and traits."""
    return matches(site, site.facts.surgery.keep)


def only(site: Site) -> bool:
    """`--only`: everything else stays float."""
    wanted = site.facts.surgery.only
    return bool(wanted) and not matches(site, wanted)


def gate(site: Site) -> bool:
    """Squeeze-excite and its relatives: on a 1x1 map whatever the input's size, or a factor of other features.

    They cost little, act on every channel at once, and a sign would leave them two values.
    """
    alone = not site.is_linear and site.all_calls(_on_1x1_map) and not _grows(site)
    return alone or _becomes_factor(site)


def attention(site: Site) -> bool:
    """A linear layer whose values meet a softmax: queries, keys and values, whose products are no convolution."""
    return site.is_linear and site.all_calls(_meets_softmax)


def stem(site: Site) -> bool:
    """Nothing with weights lies before it: it sees raw pixels; binary, it costs much accuracy for little time."""
    return not site.facts.surgery.binarize_stem and _is_first(site)


def classifier(site: Site) -> bool:
    """Nothing with weights lies behind it: its values are the answer."""
    return site.all_calls(lambda call: call not in site.facts.before_weights)


def thin(site: Site) -> bool:
    """One channel in or out, or a 1-d conv inside a 2-d net: a helper without features to speak of."""
    if site.is_linear or _is_first(site):
        return False
    rank = len(shape_of(site.calls[0].all_input_nodes[0]) or ())
    return min(site.channels) == 1 or (rank == 3 and site.facts.image_rank > 3)


def untraceable(site: Site) -> bool:
    """Code that no graph holds calls it, so that no pass can edit what is around it; capture says where and why."""
    return not site.all_calls(lambda call: "region_node" in call.meta)


RULES: tuple[Rule, ...] = (
    Rule("untraceable", "called by code that no graph holds", untraceable),
    Rule("transposed", "transposed conv: no binary form", transposed),
    Rule("subclass", "its class, or a patched forward, computes its own convolution", subclass),
    Rule("keep", "kept by --keep or the recipe", keep, planned=True),
    Rule("only", "not among what the user wants binary", only, planned=True),
    Rule("gate", "gate: its map is 1x1 or it becomes a factor of other features", gate, planned=True),
    Rule("attention", "linear layer whose values meet a softmax", attention, planned=True),
    Rule("stem", "first conv on the image", stem, planned=True),
    Rule("classifier", "last conv: it gives the output", classifier, planned=True),
    Rule("thin", "one channel, or a 1-d helper in a 2-d net", thin),
)
"""The first one that applies decides; without one, a layer is eligible. The first four are limits, the next two the
user's word, the rest defaults that protect accuracy."""

ELIGIBLE = "eligible"
FUNCTIONAL = Rule("functional", "called as a function, so its weight belongs to no conv module", lambda _: True)
DYNAMIC = Rule("dynamic", "its weight is computed at run time, so there is nothing fixed to pack", lambda _: True)
"""Of convolutions that have no module; `plan` knows them by their call."""
UNUSED = Rule("unused", "not called for the example inputs, in eval mode", lambda _: True, planned=True)
"""Of auxiliary heads and the like."""

PLANNED = frozenset(rule.name for rule in RULES if rule.planned) | {ELIGIBLE, UNUSED.name}
"""What `--strict` accepts."""


def projection(site: Site) -> bool:
    """Alone on a block's shortcut, where the other branch has more convs."""
    block = site.block
    return block is not None and block.form == "projection" and set(site.calls) <= block.shortcut


def pointwise(site: Site) -> bool:
    """A 1x1 conv of any kind, or a linear layer."""
    return math.prod(getattr(site.module, "kernel_size", (1,))) == 1


def strided(site: Site) -> bool:
    """A stride of more than 1."""
    return any(step > 1 for step in getattr(site.module, "stride", ()))


def dilated(site: Site) -> bool:
    """A dilation of more than 1."""
    return any(step > 1 for step in getattr(site.module, "dilation", ()))


TRAITS: dict[str, Callable[[Site], bool]] = {
    "depthwise": lambda site: site.kind == "depthwise",
    "grouped": lambda site: site.kind == "grouped",
    "linear": lambda site: site.is_linear,
    "pointwise": pointwise,
    "projection": projection,
    "strided": strided,
    "dilated": dilated,
}
"""What `--keep rule:NAME` and `--only rule:NAME` take beside the names of rules and kernels such as `3x3`."""


SELECTABLE: Mapping[str, Callable[[Site], bool]] = {
    rule.name: rule.applies for rule in RULES if rule.name not in ("keep", "only")
} | TRAITS
"""What `rule:NAME` may name, beside kernels; the user's own choices select nothing."""


def matches(site: Site, patterns: Iterable[str]) -> bool:
    """Whether a pattern names the layer, a module around it, or a rule, trait or kernel that it has."""
    return any(_matches(site, pattern) for pattern in patterns)


def _matches(site: Site, pattern: str) -> bool:
    if not pattern.startswith(RULE_PREFIX):
        return fnmatch.fnmatchcase(site.path, pattern) or fnmatch.fnmatchcase(site.path, f"{pattern}.*")
    name = pattern.removeprefix(RULE_PREFIX)
    return SELECTABLE[name](site) if name in SELECTABLE else site.kind == name


def check_patterns(patterns: Iterable[str], sites: Iterable[Site]) -> None:
    """Raise UsageError, with near names, for a glob without a match or an unknown rule.

    A known rule may match nothing: the same configuration is for many models.
    """
    sites = list(sites)
    for pattern in patterns:
        if pattern.startswith(RULE_PREFIX):
            name = pattern.removeprefix(RULE_PREFIX)
            known = sorted(SELECTABLE)
            if name not in known and not re.fullmatch(r"\d+(x\d+)*", name):
                near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
                did_you_mean = f"did you mean {', '.join(RULE_PREFIX + n for n in near)}? " if near else ""
                raise UsageError(
                    f"unknown rule {name!r}",
                    hint=f"{did_you_mean}known: {', '.join(known)}, and kernels such as 3x3",
                )
        elif not any(_matches(site, pattern) for site in sites):
            paths = [site.path for site in sites]
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) or paths[:3]
            raise UsageError(
                f"{pattern!r} matches no convolution",
                hint=f"near names: {', '.join(near)}; `binarize inspect` lists all",
            )


def _is_first(site: Site) -> bool:
    return site.all_calls(lambda call: call not in site.facts.behind_weights)


def _map_of(node: Node) -> tuple[int, ...]:
    """Spatial size of what `node` reads."""
    return (shape_of(node.all_input_nodes[0]) or ())[2:]


def _on_1x1_map(node: Node) -> bool:
    size = _map_of(node)
    return bool(size) and math.prod(size) == 1


def _grows(site: Site) -> bool:
    """Whether a larger input gives the layer a larger map, so that a 1x1 map says nothing about the net."""
    probe = site.facts.probe
    return probe is not None and any(math.prod(size) > 1 for size in probe.larger_maps.get(site.path, ()))


def _becomes_factor(site: Site) -> bool:
    """Whether every call's value, through a sigmoid or softmax, scales a larger value that does not depend on it."""
    return site.all_calls(lambda call: any(_scales_other(call, gate) for gate in _gates_reached(site, call)))


def _gates_reached(site: Site, call: Node) -> Iterator[Node]:
    """The sigmoids and softmaxes behind `call`, past weighted layers only where they see one value per channel."""

    def passes_on(node: Node) -> bool:
        return node not in site.facts.weighted or _on_1x1_map(node) or len(shape_of(node) or ()) == 2

    return (node for node in walk_forward(call, passes_on) if is_gate_function(node))


def _scales_other(call: Node, gate: Node) -> bool:
    dependent = {call, *walk_forward(call, lambda node: True)}
    return any(_is_scaled_by(node, dependent) for node in walk_forward(gate, lambda node: not is_weighted(node)))


def _is_scaled_by(node: Node, dependent: set[Node]) -> bool:
    """Whether `node` multiplies something by a smaller factor, and only the factor is in `dependent`."""
    operands = node.all_input_nodes
    if not calls_function(node, MUL_TARGETS) or len(operands) != 2:
        return False
    factor, scaled = sorted(operands, key=_numel)
    return _numel(factor) < _numel(scaled) and factor in dependent and scaled not in dependent


def _numel(node: Node) -> int:
    return math.prod(shape_of(node) or (1,))


def _meets_softmax(call: Node) -> bool:
    reached = walk_forward(call, lambda node: not is_weighted(node))
    return any(calls_module(node, nn.Softmax) or calls_function(node, _ATTENTION) for node in reached)


_ATTENTION = {F.softmax, torch.softmax, "softmax", F.scaled_dot_product_attention}
