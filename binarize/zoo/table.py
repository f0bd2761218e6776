"""The outcomes of a zoo as one JSON document and as Markdown."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from binarize.zoo.stations import STATIONS, Outcome

_HEADS = {
    "build": "runs as float",
    "surgery": "converted",
    "train": "trained a step",
    "export": "exported",
    "run": "run, equal",
}


@dataclass
class Table:
    """Outcomes with what they were made with.

    Attributes:
        outcomes: of every model.
        about: versions, machine and settings, for the head of the page.
    """

    outcomes: list[Outcome]
    about: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(
            {"about": self.about, "summary": self.summary(), "models": [o.to_dict() for o in self.outcomes]}, indent=1
        )

    def summary(self) -> dict[str, Any]:
        """Counts per source and station, and the figures over all models that were converted."""
        converted = [o for o in self.outcomes if o.passed("surgery")]
        shares = [o.mac_share for o in converted if o.convs]
        seconds = [(o.seconds["surgery"], o.name) for o in converted if "surgery" in o.seconds]
        return {
            "models": len(self.outcomes),
            "coverage": {source: _coverage(group) for source, group in _by_source(self.outcomes).items()},
            "convs": sum(o.convs for o in converted),
            "binarized": sum(o.binarized for o in converted),
            "links": dict(sorted(sum((Counter(o.links) for o in converted), Counter()).items())),
            "kept": dict(sorted(sum((Counter(o.kept) for o in converted), Counter()).items())),
            "mac_share": {"median": statistics.median(shares), "lowest": min(shares)} if shares else {},
            "conversion_seconds": _spread(seconds),
            "failures": [{"model": o.spec, "station": o.failed_at, "reason": o.reason} for o in self.failures],
        }

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.failed_at]

    def to_markdown(self) -> str:
        """The page: coverage, figures, exceptions, and a line per model."""
        parts = [
            "\n".join(f"- {key}: {value}" for key, value in self.about.items()),
            "## Coverage\n\n" + self._coverage_rows(),
            "## In figures\n\n" + self._figures(),
            "## Exceptions\n\n" + self._exceptions(),
            "## Every model\n\n" + self._model_rows(),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _coverage_rows(self) -> str:
        rows = [["source", "models", *_HEADS.values()]]
        for source, counts in self.summary()["coverage"].items():
            rows.append([source, str(counts["models"]), *(str(counts[station]) for station in _HEADS)])
        return markdown_table(rows)

    def _figures(self) -> str:
        found = self.summary()
        if not found["mac_share"]:
            return "Nothing was converted."
        shares, seconds = found["mac_share"], found["conversion_seconds"]
        lines = [
            f"- {found['binarized']} of {found['convs']} convolutions became binary; of a model's multiply-accumulates "
            f"in convolutions {shares['median']:.1%} in the median, {shares['lowest']:.1%} at least.",
            f"- Elastic Links: {_counts(found['links'])}.",
            f"- Float by rule: {_counts(found['kept'])}.",
            f"- Surgery takes {seconds['median']:.2f} s in the median, {seconds['worst']:.1f} s at most "
            f"({seconds['worst_model']}).",
        ]
        return "\n".join(lines)

    def _exceptions(self) -> str:
        reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
        for outcome in self.failures:
            reasons[outcome.failed_at, outcome.reason].append(outcome.name)
        # Module names alone: the reasons name files of the machine that ran this, and are in the JSON.
        partial = {
            o.name: list(dict.fromkeys(why.partition(":")[0] for why in o.untraced))
            for o in self.outcomes
            if o.untraced
        }
        lines = [
            f"- **{station}**, {', '.join(names)}: {_cell(reason)}" for (station, reason), names in reasons.items()
        ]
        lines += [f"- parts outside of any graph, {name}: {', '.join(modules)}" for name, modules in partial.items()]
        return "\n".join(lines) or "None."

    def _model_rows(self) -> str:
        head = ["model", "input", "convs", "binary", "of MACs", "links", "float MB", "file MB", *STATIONS, "verdict"]
        rows = [head]
        for o in self.outcomes:
            times = [f"{o.seconds[s]:.1f}" if s in o.seconds else "" for s in STATIONS]
            rows.append(
                [
                    o.name, o.inputs, str(o.convs), str(o.binarized), f"{o.mac_share:.1%}", _counts(o.links),
                    _megabytes(o.float_bytes), _megabytes(o.file_bytes), *times, _cell(o.verdict)[:120],
                ]
            )  # fmt: skip
        return markdown_table(rows)


def markdown_table(rows: list[list[str]]) -> str:
    """Rows, the first one the head, as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _coverage(outcomes: list[Outcome]) -> dict[str, int]:
    counts = {station: sum(outcome.passed(station) for outcome in outcomes) for station in STATIONS}
    return {"models": len(outcomes), **counts}


def _spread(seconds: list[tuple[float, str]]) -> dict[str, Any]:
    if not seconds:
        return {}
    worst, model = max(seconds)
    return {"median": statistics.median(value for value, _ in seconds), "worst": worst, "worst_model": model}


def _by_source(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        source = outcome.spec.rpartition(":")[0]
        groups[source if "/" not in source else source.rpartition("/")[0]].append(outcome)
    return dict(groups)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}" if size else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
