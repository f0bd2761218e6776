"""Decisions about known models, one file per family and one line per conv: a change shows up as a diff to review."""

from __future__ import annotations

import json
from pathlib import Path

from binarize.report import Report

FOLDER = Path(__file__).parent / "goldens" / "decisions"


def check_decisions(family: str, name: str, report: Report, *, regenerate: bool) -> None:
    """Compare `report` with what `FOLDER/<family>.json` holds under `name`; `--regen-goldens` writes it instead."""
    path = FOLDER / f"{family}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    found = [decision.line for decision in report.decisions]
    if regenerate:
        known[name] = found
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    assert found == known.get(name)
