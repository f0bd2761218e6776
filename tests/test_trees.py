"""Structures come back as they were, and name no code."""

from __future__ import annotations

import enum
import json
import sys
from collections import OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path
from typing import Any

import pytest
from torch.utils._pytree import tree_flatten, tree_unflatten

from binarize.errors import UnsupportedModelError
from binarize.trees import read_structure, write_structure

Pair = namedtuple("Pair", "a b")


class Kind(enum.Enum):
    A = 1


@pytest.mark.parametrize(
    "value",
    [1, [1, (2, None)], {"a": 1, 3: [2]}, OrderedDict(b=1, a=2), deque([1, 2], 3), defaultdict(list, {"a": [1]})],
    ids=str,
)
def test_structures_come_back(value: Any) -> None:
    leaves, structure = tree_flatten(value)
    found = tree_unflatten(leaves, read_structure(write_structure(structure)))
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("value", [Pair(1, 2), {Kind.A: 1}, defaultdict(Path), defaultdict(None), {(1, 2): 3}], ids=str)
def test_what_could_not_be_read_is_not_written(value: Any) -> None:
    with pytest.raises(UnsupportedModelError):
        write_structure(tree_flatten(value)[1])


LEAF = {"type": None, "context": None, "children_spec": []}


def factory(module: str, name: str) -> dict[str, Any]:
    context = {"default_factory_module": module, "default_factory_name": name, "dict_context": ["a"]}
    return {"type": "collections.defaultdict", "context": context, "children_spec": [LEAF]}


ENUM = {"__enum__": True, "fqn": "evil_tree:Kind", "name": "A"}


@pytest.mark.parametrize(
    "node",
    [
        factory("evil_tree", "make"),
        factory("builtins", "breakpoint"),
        {"type": "builtins.dict", "context": json.dumps([ENUM]), "children_spec": [LEAF]},
        {"type": "builtins.dict", "context": json.dumps([ENUM]).replace("_", "\\u005f"), "children_spec": [LEAF]},
        {"type": "builtins.dict", "context": json.dumps([["a", {"b": ENUM}]]), "children_spec": [LEAF]},
        {"type": "builtins.list", "context": "null", "children_spec": [factory("evil_tree", "make")]},
        {"type": "evil_tree.Kind", "context": "null", "children_spec": []},
        {"type": "builtins.list"},
        [],
    ],
    ids=lambda node: str(node)[:60],
)
def test_a_text_runs_no_code(node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_tree.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnsupportedModelError):
        read_structure(json.dumps([1, node]))
    assert "evil_tree" not in sys.modules


@pytest.mark.parametrize("text", ["", "[]", "[9, {}]", "[" * 100_000])
def test_a_damaged_text_is_an_error(text: str) -> None:
    with pytest.raises(UnsupportedModelError):
        read_structure(text)
