"""Published systems as data: a recipe is a named configuration, never a fork of the pipeline."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from binarize.config import Config
from binarize.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """A way to binarize.

    Args:
        name: what `--recipe` takes.
        summary: one line for `binarize recipes`.
        source: paper, venue, section.
        config: its configuration, on top of which a file and `--set` go.
    """

    name: str
    summary: str
    source: str
    config: Config


def all_recipes() -> dict[str, Recipe]:
    """Every recipe by name."""
    from binarize.recipes.bireal import BIREAL
    from binarize.recipes.el import EL

    return {recipe.name: recipe for recipe in (EL, BIREAL)}


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`, or a UsageError with near names."""
    recipes = all_recipes()
    if name not in recipes:
        close = difflib.get_close_matches(name, list(recipes), n=2, cutoff=0.3)
        hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(recipes)}"
        raise UsageError(f"unknown recipe {name!r}", hint=f"{hint} See `binarize recipes`.")
    return recipes[name]
