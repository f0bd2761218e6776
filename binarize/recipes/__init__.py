"""Published systems as data: a recipe is a named configuration with its paper's facts, never a fork of the pipeline."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from binarize.config import Config
from binarize.errors import UsageError

TABLE1_NETS = ("ResNet-26", "ResNet-50", "MobileNetV1", "ResNet-18", "ResNet-34")
"""Columns of Table 1 of the Elastic-Link paper: ImageNet top-1 in percent."""

FLOAT_TOP1 = (72.5, 75.9, 70.6, 69.3, 71.5)
"""The float nets' top-1 that the paper's accuracy ratios imply."""


@dataclass(frozen=True)
class Recipe:
    """A way to binarize.

    Args:
        name: what `--recipe` takes.
        summary: one line for `binarize recipes`.
        source: paper, venue, section.
        config: its configuration, on top of which a file and `--set` go.
        equations: what a binary conv and its surroundings compute, a line each.
        table1: ImageNet top-1 in percent per `TABLE1_NETS`, as text; `NC`: did not converge; `-`: not given.
        cost: what it costs at run time against `el`.
        limits: where the paper's method does not apply, and what is done there.
    """

    name: str
    summary: str
    source: str
    config: Config
    equations: tuple[str, ...]
    table1: tuple[str, str, str, str, str] = field(default=("-", "-", "-", "-", "-"))
    cost: str = "as el"
    limits: tuple[str, ...] = ()


def all_recipes() -> dict[str, Recipe]:
    """Every recipe by name, in Table 1's order, then what is beyond it."""
    from binarize.recipes.abcnet import ABCNET
    from binarize.recipes.binarye import BINARYE
    from binarize.recipes.bireal import BIREAL
    from binarize.recipes.ci_net import CI_NET
    from binarize.recipes.el import EL
    from binarize.recipes.el_dagger import EL_DAGGER
    from binarize.recipes.el_reactnet import EL_REACTNET
    from binarize.recipes.gbcn import GBCN
    from binarize.recipes.mobinet import MOBINET
    from binarize.recipes.reactnet import REACTNET
    from binarize.recipes.real_to_bin import REAL_TO_BIN
    from binarize.recipes.tbn import TBN
    from binarize.recipes.xnor import XNOR
    from binarize.recipes.xnor_plus_plus import XNOR_PLUS_PLUS

    recipes = (
        *(XNOR, ABCNET, TBN, BIREAL, BINARYE, CI_NET, XNOR_PLUS_PLUS, GBCN, MOBINET, EL, REAL_TO_BIN, EL_DAGGER),
        *(REACTNET, EL_REACTNET),
    )
    return {recipe.name: recipe for recipe in recipes}


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`, or a UsageError with near names."""
    recipes = all_recipes()
    if not isinstance(name, str):
        raise UsageError(f"the recipe is a {type(name).__name__}", hint="give its name; a Config goes to config=")
    if name not in recipes:
        close = difflib.get_close_matches(name, list(recipes), n=2, cutoff=0.3)
        hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(recipes)}"
        raise UsageError(f"unknown recipe {name!r}", hint=f"{hint} (`binarize recipes` lists them)")
    return recipes[name]
