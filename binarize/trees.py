"""The structure of lists, dictionaries and so on of tensors as text, and back, without running what the text names."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from torch.utils._pytree import TreeSpec, treespec_dumps, treespec_loads

from binarize.errors import UnsupportedModelError

_FACTORIES = ("bool", "dict", "float", "int", "list", "set", "str", "tuple")
"""What a dictionary may make where a key lacks: builtins that do nothing else."""


def write_structure(structure: TreeSpec) -> str:
    """`structure` as torch's JSON.

    Raises:
        UnsupportedModelError: it has a type or keys that would not come back as they are.
    """
    try:
        text: str = treespec_dumps(structure)
    except (NotImplementedError, TypeError, AttributeError) as error:
        raise UnsupportedModelError(f"its values cannot be written down: {error}") from error
    if read_structure(text) != structure:
        raise UnsupportedModelError(f"its values cannot be written down: {structure} comes back as something else")
    return text


def read_structure(text: str) -> TreeSpec:
    """The structure that `write_structure` has written.

    Torch's own reader imports the modules of enumerations and of default factories that the text names.

    Raises:
        UnsupportedModelError: it is damaged, or names code.
    """
    try:
        _check(json.loads(text)[1])
        return treespec_loads(text)
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever the parser raises on a bad text
        raise UnsupportedModelError(f"a structure is damaged: {type(error).__name__}: {error}") from error


def _check(node: Any) -> None:
    """Raise UnsupportedModelError if `node`, as parsed, or one below it names code."""
    context = node["context"]
    if node["type"] == "collections.defaultdict":
        factory = (context["default_factory_module"], context["default_factory_name"])
        if factory[0] != "builtins" or factory[1] not in _FACTORIES:
            raise UnsupportedModelError(f"a structure names code: the default factory {'.'.join(map(str, factory))}")
    _refuse_enumerations(context)
    for child in node["children_spec"]:
        _check(child)


def _refuse_enumerations(value: Any) -> None:
    if isinstance(value, str):  # most contexts are JSON inside of the JSON
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, dict):
        if "__enum__" in value:
            raise UnsupportedModelError(f"a structure names code: the enumeration {value.get('fqn')}")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _refuse_enumerations(item)
