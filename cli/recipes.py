"""`binarize recipes`: the published systems that `--recipe` takes."""

from __future__ import annotations

from typing import Annotated

import typer

from binarize.cli.output import Output

RECIPES_EXAMPLES = ("binarize recipes", "binarize recipes el > binarize.toml", "binarize recipes --json")


def recipes(
    output: Output,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Print this recipe's configuration.", show_default=False),
    ] = None,
) -> None:
    """List the recipes, or print one as a TOML file to start from."""
    from binarize.recipes import all_recipes, get_recipe

    if name is not None:
        recipe = get_recipe(name)
        output.text(recipe.config.to_toml().rstrip())
        output.result({"name": name, "source": recipe.source, "config": recipe.config.to_dict()}, brief=name)
        return
    known = all_recipes().values()
    output.table("", ("recipe", "what", "source"), [(r.name, r.summary, r.source) for r in known])
    document = [{"name": r.name, "summary": r.summary, "source": r.source} for r in known]
    output.result({"recipes": document}, brief="\n".join(r.name for r in known))
