"""`python -m benchmarks.table1 run --data DIR` trains the cells that results.csv lacks; `render` shows them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.arguments import at_least
from binarize.errors import BinarizeError, UsageError
from binarize.files import write_text
from binarize.progress import ProgressEvent

if TYPE_CHECKING:
    from benchmarks.table1.plan import Cell
    from benchmarks.table1.results import Row
    from benchmarks.table1.run import Bench
    from binarize.training.data import ImageDataset

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0, or 2 if something was asked for that is not there."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except BinarizeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table1", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="train what is missing")
    run.set_defaults(command=_run)
    run.add_argument(
        "--data",
        required=True,
        nargs="+",
        type=Path,
        help="folder or files of training images; several parquet files are one data set",
    )
    run.add_argument(
        "--val", type=Path, nargs="+", help="validation images; by default the val or test split of --data"
    )
    run.add_argument(
        "--preset",
        choices=("gpu", "cpu"),
        default="gpu",
        help="gpu: the paper's five nets on 64x64 images; cpu: three small nets on 32x32, about ten minutes a cell",
    )
    run.add_argument("--nets", nargs="+", default=(), metavar="NET")
    run.add_argument(
        "--recipes",
        nargs="+",
        default=(),
        metavar="RECIPE",
        help="recipes, also with changes: el/no-link, el/identity+box-scale (an unknown one lists all); "
        "float is always trained first",
    )
    run.add_argument("--seeds", type=at_least(1), default=2, help="how many of each cell, from seed 0 on")
    run.add_argument("--epochs", type=float, help="of every cell, the float ones included")
    run.add_argument(
        "--limit", type=at_least(1), help="so many training images, the same share of every class; preset cpu: 12,800"
    )
    run.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="for every cell")
    run.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="cuda: bfloat16 and channels last"
    )
    run.add_argument("--no-export", action="store_true", help="train only")
    run.add_argument("--dry-run", action="store_true", help="list the missing cells")
    for command in (run, commands.add_parser("render", help="results.md and results.svg from results.csv")):
        command.add_argument("--results", type=Path, default=HERE / "results.csv")
        command.add_argument("--work", type=Path, default=HERE / "work", help="checkpoints and exported files")
        if command is not run:
            command.set_defaults(command=_render)
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # read when accelerate first looks for a device
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here", hint="--device cpu --preset cpu")
    from benchmarks.table1 import results
    from benchmarks.table1.plan import PRESETS, Wanted
    from benchmarks.table1.run import run_cell

    preset = PRESETS[options.preset]
    bench = _bench(options, preset.size, options.limit or preset.limit)
    settings = list(options.settings)
    if options.device == "cuda" and options.preset == "cpu":
        settings.append("training.precision=auto")
    if options.epochs is not None:
        settings += [f"training.epochs={options.epochs}", f"training.float_epochs={options.epochs}"]
    wanted = Wanted(preset, options.nets, options.recipes, options.seeds, tuple(settings))
    cells = list(wanted.cells())
    missing = _missing(cells, bench, options.results)
    print(f"{len(cells)} cells, {len(missing)} to run", flush=True)
    _tell_diverged(cells, bench, options.results)
    for number, cell in enumerate(missing, start=1):
        if not options.dry_run and cell not in _missing(missing, bench, options.results):
            continue  # another process was faster, or its float net has diverged
        print(f"[{number}/{len(missing)}] {cell.name}", flush=True)
        if options.dry_run:
            continue
        row = run_cell(cell, bench, _say)
        results.append(options.results, row)
        print(f"    top-1 {row.top1 or 'none'} % in {row.seconds:.0f} s; {row.note}", flush=True)
        _tell_diverged([c for c in cells if c.float_cell == cell], bench, options.results)
        for checkpoint in bench.work.glob(f"{cell.name}-{row.key}*.ckpt"):
            checkpoint.unlink()


def _missing(cells: Sequence[Cell], bench: Bench, path: Path) -> list[Cell]:
    """Cells without a row, but for those whose float net diverged; and float cells of these whose weights are gone."""
    from benchmarks.table1 import results

    keys, diverged = {row.key for row in results.read(path)}, _diverged(cells, bench, path)
    new = [cell for cell in cells if cell.key(bench.facts) not in keys and cell.float_cell not in diverged]
    wanted = {cell.float_cell for cell in new if not bench.float_file(cell).exists()}
    return [cell for cell in cells if cell in new or cell in wanted]


def _diverged(cells: Sequence[Cell], bench: Bench, path: Path) -> dict[Cell, Row]:
    """The float cells of `cells` that have given no net; their rows say why."""
    from benchmarks.table1 import results

    rows = {row.key: row for row in results.read(path) if not row.top1}
    keys = {cell: cell.key(bench.facts) for cell in dict.fromkeys(cell.float_cell for cell in cells)}
    return {cell: rows[key] for cell, key in keys.items() if key in rows}


def _tell_diverged(cells: Sequence[Cell], bench: Bench, path: Path) -> None:
    """A line for each float net that diverged and would have taught binary ones."""
    for cell, row in _diverged(cells, bench, path).items():
        why = row.note.partition("\n")[0]
        if count := sum(other.float_cell == cell != other for other in cells):
            print(f"{cell.net}, seed {cell.seed}: the float net {why}; binary cells not run: {count}", flush=True)


def _bench(options: argparse.Namespace, size: int, limit: int | None) -> Bench:
    from benchmarks.table1.run import Bench
    from binarize.training.data import open_dataset, split_train_val

    if options.val is None and options.data[0].is_file():
        raise UsageError("a file has no split of its own to validate on", layer=str(options.data[0]), hint="name --val")
    train_set = _open(options.data, "train", "--data")
    if limit and limit < len(train_set):
        _, train_set = split_train_val(train_set, limit / len(train_set), seed=0)
    val_set = _open(options.val, "val", "--val") if options.val else open_dataset(options.data[0], split="val")
    options.work.mkdir(parents=True, exist_ok=True)
    return Bench(train_set, val_set, size, options.work, _name(options.data), export=not options.no_export)


def _name(paths: list[Path]) -> str:
    """Of the data, for keys: that of its folder or file, or of its folder and the files in it."""
    first = paths[0].resolve()
    return first.name if len(paths) == 1 else f"{first.parent.name}: {', '.join(sorted(p.name for p in paths))}"


def _open(paths: Sequence[Path], split: str, option: str) -> ImageDataset:
    """One data set from a folder, a file, or several parquet files, as `option` names them."""
    from binarize.training.data import ParquetImages, available_splits, open_dataset

    paths = [path.expanduser() for path in paths]
    for path in paths:
        if not path.exists():
            raise UsageError("there is no such file or directory", layer=str(path), hint=f"check {option}")
        if path.is_dir() and len(paths) > 1:
            raise UsageError(
                f"a folder among {len(paths)} paths; only parquet files are joined to one data set",
                layer=str(path),
                hint=f"give {option} one folder, with all images in its class folders, or parquet files alone",
            )
    if len(paths) == 1:
        return open_dataset(paths[0], split=split if paths[0].is_dir() and available_splits(paths[0]) else None)
    try:
        return ParquetImages(paths)
    except OSError as error:
        raise UsageError(f"the data cannot be read: {error}", layer=option, hint="are all of them readable?") from error


def _say(event: ProgressEvent) -> None:
    if event.milestone:
        fields = ", ".join(f"{key} {value}" for key, value in event.fields.items())
        print(f"    {event.task} {event.done}/{event.total}: {fields}", flush=True)


def _render(options: argparse.Namespace) -> None:
    from benchmarks.table1 import render, results

    rows = results.read(options.results)
    write_text(options.results.with_suffix(".md"), render.markdown(rows))
    if rows:
        render.plot(rows, options.results.with_suffix(".svg"))
    print(f"{len(rows)} rows -> {options.results.with_suffix('.md')}")


if __name__ == "__main__":
    sys.exit(main())
