"""What lowering starts from: a graph without writes that computes what the module does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from binarize.errors import UnsupportedModelError
from binarize.lowering import dynamic_batch
from binarize.lowering.functional import functional_graph

X = torch.randn(2, 6, 8, 8)


class Net(nn.Module):
    """Convolution, batch norm that has seen data, and whatever is put behind them."""

    def __init__(self, rest: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.norm.running_mean.normal_()  # type: ignore[union-attr]
        self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        self.rest = rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.norm(self.conv(x)))


def add_in_place(x: Tensor) -> Tensor:
    y = x.relu()
    y[:, 0] += 1
    return y


def write_to_a_view(x: Tensor) -> Tensor:
    y = x.relu()
    y.flatten(1).mul_(2)
    return y


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "classifier": lambda x: F.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1), 0.5, False) * 2,
    "channel dropout": lambda x: F.dropout2d(x, 0.5, False).relu(),
    "shuffled": lambda x: x.reshape(-1, 2, 3, 8, 8).transpose(1, 2).contiguous().flatten(1, 2) + x,
    "split": lambda x: torch.cat(x.chunk(4, 1)[::-1], 1),
    "split from the end": lambda x: torch.cat([part.sigmoid() for part in x.chunk(2, -3)], 1),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "in place": add_in_place,
    "through a view": write_to_a_view,
    "norm of the batch": lambda x: F.batch_norm(x, None, None, training=True),
    "no gradient": lambda x: x * torch.no_grad()(torch.sigmoid)(x),
}


def is_functional(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or not schema.is_mutable


def watch(monkeypatch: pytest.MonkeyPatch) -> list[ExportedProgram]:
    """The programs that are decomposed from now on."""
    decomposed: list[ExportedProgram] = []
    decompose = ExportedProgram.run_decompositions

    def recorded(program: ExportedProgram, *arguments: object) -> ExportedProgram:
        decomposed.append(program)
        return decompose(program, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ExportedProgram, "run_decompositions", recorded)
    return decomposed


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_it_computes_what_the_module_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decomposed = watch(monkeypatch)
    module = Net({**PLAIN, **OTHERS}[name]).eval()
    graph = functional_graph(module, (X,), dynamic_batch((X,)))
    assert len(decomposed) == (name in OTHERS), "only what writes, or is not known, is traced again"
    assert all(is_functional(node) for node in graph.graph.nodes)
    assert not any("dropout" in str(node.target) for node in graph.graph.nodes)
    with torch.no_grad():
        for batch in (X, torch.randn(4, 6, 8, 8)):
            torch.testing.assert_close(graph(batch.clone()), module(batch.clone()))


def test_dropout_that_is_left_on_stays_random() -> None:
    module = Net(lambda x: F.dropout(x, 0.5, True)).eval()
    graph = functional_graph(module, (X,), dynamic_batch((X,)))
    assert not torch.equal(graph(X), graph(X))


def test_a_pool_whose_last_windows_depend_on_the_size_is_refused_where_sizes_may_differ() -> None:
    module = Net(lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True, divisor_override=4)).eval()
    graph = functional_graph(module, (X,), dynamic_batch((X,)))
    torch.testing.assert_close(graph(X), module(X))
    with pytest.raises(UnsupportedModelError, match="windows that depend on the map's size") as refused:
        functional_graph(module, (X,), (dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO),))
    assert refused.value.layer == "avg_pool2d"


def test_sizes_that_may_all_differ_are_not_made_a_view_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    decomposed = watch(monkeypatch)
    module = Net(lambda x: x.flatten(2).softmax(1)).eval()
    any_size = (dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO),)
    graph = functional_graph(module, (X,), any_size)
    assert decomposed
    larger = torch.randn(3, 6, 5, 9)
    torch.testing.assert_close(graph(larger), module(larger))
