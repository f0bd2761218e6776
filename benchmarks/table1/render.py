"""The results as a Markdown table and a plot, next to the paper's ImageNet numbers."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.table1.nets import NETS, PAPER_COLUMN
from benchmarks.table1.plan import ABLATIONS, FLOAT, LINKS, PRESETS, product_arms
from benchmarks.table1.results import Row
from binarize.recipes import FLOAT_TOP1, TABLE1_NETS, all_recipes
from binarize.training.finetune import HARMLESS_SETTINGS

OPEN = "open"
"""What a cell says that nobody has run yet."""


_HARMLESS = re.compile(rf" training\.({'|'.join(HARMLESS_SETTINGS)})=\S+")


def conditions(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that may be compared: same data, size, budget and settings."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        title = f"{row.data}, {row.size}x{row.size}, {row.train_images} images, {_epochs(row):g} epochs"
        _, own = _preset_of(row)
        groups[title + (f", {own}" if own else "")].append(row)
    return dict(groups)


_EPOCHS = re.compile(r"\btraining\.epochs=(\S+)")


def _epochs(row: Row) -> float:
    """Of the binary nets that a row may be compared with: a float net may train longer."""
    return float([str(row.epochs), *_EPOCHS.findall(row.settings)][-1])


def _preset_of(row: Row) -> tuple[str, str]:
    """The preset that a row's settings start with, if one does, and what a run set besides."""
    settings = _HARMLESS.sub("", row.settings)
    for name, preset in PRESETS.items():
        if settings.startswith(common := " ".join(preset.settings)):
            return name, settings.removeprefix(common).strip()
    return "", settings


def markdown(rows: Sequence[Row]) -> str:
    """One table per condition; then the paper's numbers, and which cells are open."""
    parts = ["# Table 1 in miniature", "", _INTRODUCTION]
    for title, group in conditions(rows).items():
        parts += ["", f"## {title}", "", *_table(group), *_teachers(group), *_products(group)]
    parts += ["", "## Still open", "", *_open_cells(rows)]
    return "\n".join(parts) + "\n"


_INTRODUCTION = """Top-1 in percent on the validation images: mean over seeds, with the sample's standard deviation
where there are several, and the number of seeds; in brackets the share of the float net's top-1. Beside it the ImageNet
top-1 of the paper's net (for small nets the nearest one's), another task with another budget: compare orders, not
numbers. NC: it did not converge. Made by `python -m benchmarks.table1 render` from results.csv."""


def _table(rows: Sequence[Row]) -> list[str]:
    nets = [net for net in NETS if any(row.net == net for row in rows)]
    arms = [arm for arm in _arms(rows) if arm not in _COMBINED and any(row.recipe == arm for row in rows)]
    header = [
        "recipe",
        *(text for net in nets for text in (net, *([f"{PAPER_COLUMN[net]}, paper"] if net in PAPER_COLUMN else []))),
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for arm in arms:
        cells = [arm]
        for net in nets:
            cells.append(summary([r for r in rows if r.net == net and r.recipe == arm]))
            if net in PAPER_COLUMN:
                cells.append(paper_number(arm, net))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _teachers(rows: Sequence[Row]) -> list[str]:
    """Which cells of a column start from different float nets: weights are not kept with the results."""
    teachers: dict[tuple[str, int], set[str]] = defaultdict(set)
    for row in rows:
        if row.recipe != FLOAT and row.float_top1:
            teachers[row.net, row.seed].add(row.float_top1)
    lines = [
        f"- {net}, seed {seed}: float nets of {' and '.join(sorted(found, key=float))} %; shares are of each row's own"
        for (net, seed), found in sorted(teachers.items())
        if len(found) > 1
    ]
    return ["", *lines] if lines else []


_COMBINED = {arm for arm, changes in product_arms().items() if len(changes) > 1}
"""Arms with several changes; they have tables of their own."""


def _products(rows: Sequence[Row]) -> list[str]:
    """For each net with combined changes: every combination of position, gamma and K, with each kind of link."""
    lines = []
    kinds = (*LINKS, "elastic")
    for net in (net for net in NETS if any(row.net == net and row.recipe in _COMBINED for row in rows)):
        cells: dict[tuple[str, ...], dict[str, str]] = defaultdict(lambda: dict.fromkeys(kinds, "-"))
        for arm, changes in product_arms().items():
            kind, parts = (changes[0], changes[1:]) if changes[:1] and changes[0] in LINKS else ("elastic", changes)
            cells[parts][kind] = summary([r for r in rows if r.net == net and r.recipe == arm])
        lines += [
            "",
            f"{net}, links and parts of `el` combined:",
            "",
            "| | " + " | ".join(kinds) + " |",
            "|---|---|---|---|",
        ]
        for parts in sorted(cells, key=len):
            lines.append("| " + " | ".join([" + ".join(parts) or "as `el`", *cells[parts].values()]) + " |")
    return lines


def summary(rows: Sequence[Row]) -> str:
    """A cell of the table from its seeds."""
    if not rows:
        return OPEN
    finished = [row for row in rows if row.top1]
    if not finished:
        return "NC"
    values = [float(row.top1) for row in finished]
    text = f"{statistics.mean(values):.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    text += f" (n={len(values)})"
    shares = [float(row.top1) / float(row.float_top1) for row in finished if row.float_top1]
    if shares:
        text += f" [{100 * statistics.mean(shares):.1f} %]"
    return text + (f", {len(rows) - len(finished)} NC" if len(finished) < len(rows) else "")


def paper_number(arm: str, net: str) -> str:
    """The paper's ImageNet top-1 of a recipe on a net."""
    column = TABLE1_NETS.index(PAPER_COLUMN[net])
    if arm == FLOAT:
        return f"{FLOAT_TOP1[column]:g}"
    if arm == "abcnet":  # the paper's is this one
        return "-"
    recipe = "abcnet" if arm == "abcnet/1x1" else arm
    return all_recipes()[recipe].table1[column] if recipe in all_recipes() else "-"


def _paper_share(arm: str, net: str) -> float | None:
    """In percent of the paper's float net; none where it has no number or the net did not converge."""
    number = paper_number(arm, net)
    return 100 * float(number) / float(paper_number(FLOAT, net)) if number not in ("-", "NC") else None


def _arms(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((FLOAT, *all_recipes(), *ABLATIONS, *(row.recipe for row in rows))))


def _open_cells(rows: Sequence[Row]) -> list[str]:
    """What of each preset, and of the product of `el`'s parts, has no result with its settings, or that of one seed."""
    lines = []
    for name, preset in PRESETS.items():
        done = {(row.net, row.recipe, row.seed) for row in rows if _preset_of(row) == (name, "")}
        seeds = Counter((net, arm) for net, arm, _ in done)
        for net in preset.nets:
            missing = [arm for arm in preset.arms if not seeds[net, arm] and arm not in _COMBINED]
            if combined := [arm for arm in preset.arms if not seeds[net, arm] and arm in _COMBINED]:
                missing.append(f"and {len(combined)} combinations of parts of `el`")
            if missing:
                lines.append(f"- preset `{name}`, {net}: {', '.join(missing)}")
            if single := [arm for arm in preset.arms if seeds[net, arm] == 1]:
                lines.append(f"- preset `{name}`, {net}, a second seed: {', '.join(single)}")
            rest = [arm for arm in product_arms() if arm not in preset.arms]
            for what, count in (("", 0), (", a second seed", 1)):
                if found := [arm.removeprefix("el/") for arm in rest if seeds[net, arm] == count]:
                    lines.append(f"- beside preset `{name}`, {net}, parts of `el` combined{what}: {', '.join(found)}")
    return lines or ["nothing"]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars per recipe and net beside the paper's: share of the float net's top-1, for the largest condition."""
    from binarize.bench.plot import check_plot, grouped_bars, save_figure

    check_plot(path)
    from matplotlib import pyplot

    title, group = max(conditions(rows).items(), key=lambda item: len(item[1]))
    nets = [net for net in NETS if any(row.net == net for row in group)]
    arms = [
        arm for arm in _arms(group) if arm != FLOAT and arm not in _COMBINED and any(r.recipe == arm for r in group)
    ]

    def share(net: str, arm: str) -> float | None:
        found = [r for r in group if r.net == net and r.recipe == arm and r.top1 and r.float_top1]
        return statistics.mean(100 * float(r.top1) / float(r.float_top1) for r in found) if found else None

    names = [name for net in nets for name in (net, f"{PAPER_COLUMN[net]} on ImageNet, paper")]
    values = {arm: [v for net in nets for v in (share(net, arm), _paper_share(arm, net))] for arm in arms}
    figure, axes = pyplot.subplots(figsize=(8, 1.5 + 0.14 * len(arms) * len(names)), layout="constrained")
    grouped_bars(axes, values, names, f"% of the float net's top-1; {title}")
    axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    save_figure(figure, path)
