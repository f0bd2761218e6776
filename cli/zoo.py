"""`binarize zoo`: send many models through the whole pipeline and tell how far each comes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from binarize.cli import options
from binarize.cli.output import Output
from binarize.errors import UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from binarize.zoo import Table

ZOO_EXAMPLES = (
    "binarize zoo torchvision --families resnet,densenet --jobs 4",
    "binarize zoo timm --per-family 1 --markdown zoo.md",
    "binarize zoo torchvision timm --until surgery --shard 2/8",
    "binarize zoo examples/classic --models 'resnet*,vgg*' --restart",
)
Station = Literal["build", "surgery", "train", "export", "run"]


def zoo(
    output: Output,
    *,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="torchvision, timm (its CNNs), Python files or folders of them (their __all__). Default: torchvision.",
            show_default=False,
        ),
    ] = None,
    families: Annotated[
        str | None,
        typer.Option(help="Globs of modules, by comma: 'resnet,detection.*'.", show_default=False),
    ] = None,
    models: Annotated[str | None, typer.Option(help="Globs of model names, by comma.", show_default=False)] = None,
    per_family: Annotated[
        int | None, typer.Option(min=1, help="Only this many of each family, the shallowest.", show_default=False)
    ] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Every N-th model, from the I-th on.")] = "1/1",
    until: Annotated[Station, typer.Option(help="The last station.")] = "run",
    jobs: Annotated[int, typer.Option(min=1, help="Models at a time; each computes with one thread.")] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds for one model.")] = 600.0,
    out: Annotated[Path, typer.Option(help="Folder of results, a file per model; finished models are skipped.")] = Path(
        "zoo.run"
    ),
    markdown: Annotated[Path | None, typer.Option(help="Write the table here too.", show_default=False)] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Run finished models again.")] = False,
    plan: options.PlanOptions,
) -> None:
    """Convert, train a step, export, run and compare many models, small and untrained; exit 3 if one does not work."""
    settled = plan.settle()
    from binarize.files import check_writable, write_text
    from binarize.machine import versions
    from binarize.zoo import Settings, Table, entries, run_zoo

    if markdown is not None:
        check_writable(markdown)
    chosen = entries(
        sources or ["torchvision"],
        families=_globs(families),
        models=_globs(models),
        per_family=per_family,
        shard=_shard(shard),
    )
    output.note(f"{len(chosen)} models, {jobs} at a time; results in {out}")
    output.resumes = "the same command goes on after the last finished model"
    how = Settings(out, until, jobs, timeout, settled, restart)
    outcomes = run_zoo(chosen, how, output.progress)
    about = {name: str(version) for name, version in versions().items()}
    table = Table(outcomes, {**about, "cores": str(os.cpu_count()), "recipe": settled.recipe, "until": until})
    write_text(out / "zoo.json", table.to_json() + "\n")
    if markdown is not None:
        write_text(markdown, table.to_markdown())
    _show(output, table)
    if table.failures:
        raise typer.Exit(UnsupportedModelError.exit_code)


def _show(output: Output, table: Table) -> None:
    rows = [
        [o.name, f"{o.binarized}/{o.convs}", f"{o.mac_share:.1%}", f"{sum(o.seconds.values()):.1f} s", o.verdict[:90]]
        for o in table.outcomes
    ]
    output.table("", ["model", "binary convs", "of MACs", "time", "verdict"], rows)
    good = len(table.outcomes) - len(table.failures)
    output.text(f"{good} of {len(table.outcomes)} models came through")
    output.result({**table.summary(), "models": [o.to_dict() for o in table.outcomes]}, brief=good)


def _globs(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


def _shard(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not slash or not part.isdigit() or not parts.isdigit():
        raise UsageError(f"--shard {text!r} is not I/N", hint="for example --shard 2/8")
    return int(part), int(parts)
