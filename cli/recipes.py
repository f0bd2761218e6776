"""`binarize recipes`: the published systems that `--recipe` takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from binarize.cli.output import Output

if TYPE_CHECKING:
    from binarize.config import StageConfig
    from binarize.recipes import Recipe

RECIPES_EXAMPLES = (
    "binarize recipes",
    "binarize recipes real-to-bin",
    "binarize recipes el --toml > binarize.toml",
    "binarize recipes --json",
)


def recipes(
    output: Output,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Show this recipe's equations and stages.", show_default=False),
    ] = None,
    toml: Annotated[bool, typer.Option("--toml", help="Print NAME's configuration, a file to start from.")] = False,
) -> None:
    """List the recipes, or show one: equations, stages, costs, limits.

    The numbers are ImageNet top-1 in percent from Table 1 of the Elastic-Link paper, of the papers' nets, not of
    this program's. NC: it did not converge.
    """
    from binarize.errors import UsageError
    from binarize.recipes import FLOAT_TOP1, TABLE1_NETS, all_recipes, get_recipe

    if name is None:
        if toml:
            raise UsageError("--toml needs a recipe's name", hint="binarize recipes el --toml")
        known = list(all_recipes().values())
        rows = [(r.name, "\n".join(_facts(r)), *r.table1) for r in known]
        output.table("", ("recipe", "what", *TABLE1_NETS), [*rows, ("float", "", *map(str, FLOAT_TOP1))])
        output.result({"recipes": [_document(r) for r in known]}, brief="\n".join(r.name for r in known))
        return
    recipe = get_recipe(name)
    if toml:
        output.text(recipe.config.to_toml().rstrip())
    else:
        _show(output, recipe)
    output.result({**_document(recipe), "config": recipe.config.to_dict()}, brief=name)


def _facts(recipe: Recipe) -> list[str]:
    return [recipe.summary, recipe.source, f"Run time: {recipe.cost}", *(f"Limit: {line}" for line in recipe.limits)]


def _document(recipe: Recipe) -> dict[str, Any]:
    """A recipe's facts as plain data."""
    from binarize.recipes import TABLE1_NETS

    fields = ("name", "summary", "source", "cost")
    lists = {"equations": list(recipe.equations), "limits": list(recipe.limits)}
    table1 = dict(zip(TABLE1_NETS, recipe.table1, strict=True))
    return {field: getattr(recipe, field) for field in fields} | lists | {"table1": table1}


def _show(output: Output, recipe: Recipe) -> None:
    from binarize.recipes import TABLE1_NETS

    output.text(f"{recipe.name}: {recipe.summary}\n{recipe.source}")
    output.text("\n".join(["", "Equations", *(f"  {line}" for line in recipe.equations), ""]))
    columns = ("stage", "share", "inputs", "weights", "starts from", "teacher", "losses", "rates")
    output.table("Stages", columns, list(_stages(recipe.config.training.stages)))
    limits = ["", "At run time", f"  {recipe.cost}"]
    if recipe.limits:
        limits += ["", "Limits", *(f"  {line}" for line in recipe.limits)]
    output.text("\n".join([*limits, ""]))
    output.table("Table 1 (ImageNet top-1, %)", TABLE1_NETS, [recipe.table1])
    output.text(f"All settings: binarize recipes {recipe.name} --toml")


def _stages(stages: tuple[StageConfig, ...]) -> Iterator[tuple[str, ...]]:
    """A row per stage. A stage without a share is left out of training: it teaches none, and none starts from it."""
    trained = False
    for stage in stages:
        teacher = "previous" if stage.teacher == "previous" and trained else "float"
        yield _stage(stage, stage.start if trained else "converted", teacher)
        trained = trained or stage.share > 0


def _stage(stage: StageConfig, start: str, teacher: str) -> tuple[str, ...]:
    losses = {
        "cross entropy": stage.cross_entropy,
        "distillation": stage.distillation,
        "attention": stage.attention,
    }
    terms = " + ".join(f"{weight:g} {name}" for name, weight in losses.items() if weight)
    if stage.distillation and stage.temperature != 1:
        terms += f", temperature {stage.temperature:g}"
    rates = f"{stage.optimizer}, {stage.schedule}, {stage.rate:g}x, weights {stage.weight_rate:g}x"
    if stage.weight_decay:
        rates += f", decay {stage.weight_decay:g}"
    if stage.search != "none":
        rates += f", {stage.search} search every {stage.search_every} steps"
    taught = teacher if stage.distillation or stage.attention else "none"
    share = f"{stage.share:g}" if stage.share else "0 (off)"
    return (stage.name, share, stage.activations, stage.weights, start, taught, terms, rates)
