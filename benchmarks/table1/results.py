"""Results as one CSV file that grows by a row per finished cell."""

from __future__ import annotations

import csv
import fcntl
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from binarize.errors import UsageError

FILE = Path(__file__).parent / "results.csv"


@dataclass(frozen=True)
class Row:
    """What a cell gave. Accuracies in percent on the validation images, the last epoch's net; empty: diverged.

    `settings` are those of all cells of a run, `changes` those of the ablation.
    """

    key: str
    net: str
    recipe: str
    seed: int
    top1: str
    float_top1: str
    note: str
    epochs: float
    seconds: float
    train_images: int
    val_images: int
    classes: int
    size: int
    data: str
    settings: str
    changes: str
    device: str
    torch: str
    commit: str
    date: str


def read(path: Path) -> list[Row]:
    """The rows of `path`; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        names = [f.name for f in fields(Row)]
        if reader.fieldnames != names:
            raise UsageError("its columns are not this benchmark's", layer=str(path), hint="name another --results")
        kinds = {"seed": int, "epochs": float, "seconds": float}
        kinds |= dict.fromkeys(("train_images", "val_images", "classes", "size"), int)
        return [Row(**{name: kinds.get(name, str)(text) for name, text in row.items()}) for row in reader]


def append(path: Path, row: Row) -> None:
    """Add `row` in one locked write, so that several runs may share the file; a cell's second row is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
        if stream.seek(0, io.SEEK_END) == 0:  # now: another process may have written the header since it was opened
            writer.writeheader()
        elif any(other.key == row.key for other in read(path)):
            return
        writer.writerow(asdict(row))
        stream.write(text.getvalue())
