"""What a pass is, and the manager that runs a list of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch.fx import GraphModule

from binarize.config import Config
from binarize.errors import BinarizeError
from binarize.passes.probe import Probe
from binarize.passes.recording import Recording
from binarize.report import Decision


@dataclass
class PassContext:
    """What passes know beside the graph.

    Attributes:
        config: the conversion's configuration.
        recording: the dataflow of the whole model, for what one graph module cannot see; lowering has none.
        decisions: the plan, by conv path; `plan` fills it, later passes complete it.
        unlinked: paths of convs that have a projection for a shortcut (`balance_residuals` again).
        closed_links: paths of convs whose link starts at 0 (`balance_residuals` says why).
        probe: a second look at the model with a larger input.
        float_linear_macs: multiply-accumulates of linear layers on maps that the plan does not count as convs.
    """

    config: Config
    recording: Recording | None = None
    decisions: dict[str, Decision] = field(default_factory=dict)
    closed_links: set[str] = field(default_factory=set)
    unlinked: set[str] = field(default_factory=set)
    probe: Probe | None = None
    float_linear_macs: int = 0

    def amend(self, layer: str, **changes: Any) -> None:
        """Replace fields of the decision about `layer`."""
        self.decisions[layer] = replace(self.decisions[layer], **changes)


@dataclass(frozen=True)
class PassResult:
    """A pass's graph and how many places it changed (0: nothing left to do, so a second run is free)."""

    graph_module: GraphModule
    changed: int


class Pass(Protocol):
    """One graph transformation. Holds no state; running it twice changes nothing more."""

    name: str

    def run(self, graph_module: GraphModule, context: PassContext) -> PassResult: ...


class PassError(BinarizeError):
    """A pass failed for a reason nobody foresaw: a bug of ours."""


def run_passes(
    passes: Sequence[Pass], graph_module: GraphModule, context: PassContext
) -> tuple[GraphModule, dict[str, int]]:
    """Run `passes` in order; after each, the graph is linted. No pass runs it, so that it is compiled once.

    Returns:
        The graph, and in how many places each pass changed it.

    Raises:
        PassError: names the pass and those before it.
    """
    done: dict[str, int] = {}
    for step in passes:
        try:
            result = step.run(graph_module, context)
            graph_module = result.graph_module
            graph_module.graph.lint()
        except BinarizeError:
            raise
        except Exception as error:
            before = ", ".join(done) or "none"
            raise PassError(
                f"pass {step.name} failed: {type(error).__name__}: {error} (passes before it: {before})",
                hint="this is a bug of binarize; please report it with the model",
            ) from error
        done[step.name] = result.changed
    graph_module.recompile()
    return graph_module, done
