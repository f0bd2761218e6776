"""Outputs named after what the model returns, so that a caller finds `boxes` and not the operator that made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils._pytree import MappingKey, TreeSpec, tree_flatten_with_path, tree_unflatten

OUTPUT = "output"
"""A model's only output, and the beginning of a name without keys."""


def leaf_names(structure: TreeSpec, wanted: Sequence[bool] | None = None) -> list[str]:
    """A name for each leaf of what a model returns, or for each wanted one.

    A single leaf is `output`; those of a tuple or list are `output_0`, `output_1`; those of a dict or dataclass have
    their keys, with what is inside behind it: `boxes`, `features_0`. Where that gives one name twice, or a class has no
    keys, all are numbered.
    """
    wanted = [True] * structure.num_leaves if wanted is None else wanted
    try:
        leaves, _ = tree_flatten_with_path(tree_unflatten(range(structure.num_leaves), structure))
    except ValueError:  # a class whose owner told torch of no keys
        return numbered_names(sum(wanted))
    paths = [path for (path, _), own in zip(leaves, wanted, strict=True) if own]
    names = [_joined([_text(key) for key in path]) for path in paths]
    return names if len(set(names)) == len(names) else numbered_names(len(names))


def numbered_names(count: int) -> list[str]:
    """Names for outputs of which nothing else is known."""
    return [f"{OUTPUT}_{i}" for i in range(count)]


def _joined(keys: Sequence[str]) -> str:
    starts_with_name = keys and not keys[0].isdigit()
    return "_".join(keys if starts_with_name else (OUTPUT, *keys))


def _text(key: Any) -> str:
    """Of one step into a structure."""
    return str(key.key if isinstance(key, MappingKey) else getattr(key, "idx", getattr(key, "name", key)))
