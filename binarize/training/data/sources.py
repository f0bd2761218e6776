"""From a path to a data set: which format lies there, and which splits it has."""

from __future__ import annotations

from pathlib import Path

from binarize.errors import UsageError
from binarize.training.data.dataset import ImageDataset
from binarize.training.data.folder import FolderImages, class_folders
from binarize.training.data.parquet import ParquetImages

_SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test"),
    "test": ("test", "val", "valid", "validation"),
}


def open_dataset(path: str | Path, *, split: str | None = None) -> ImageDataset:
    """Open images with labels.

    Args:
        path: a parquet file; a directory with `train*.parquet` and `val*` or `test*.parquet`; an ImageFolder
            (root/class/image), or one with splits (root/train/class/image and root/val or root/test).
        split: "train", "val" or "test" ("val" and "test" stand in for each other). None is everything where
            there are no splits, else the training split, or the only one.

    Raises:
        UsageError: nothing usable there, or no such split; says what is there.
    """
    root = Path(path).expanduser()
    if split is not None and split not in _SPLITS:
        raise UsageError(f"There is no split '{split}'.", hint=f"use one of {', '.join(_SPLITS)}")
    if not root.exists():
        raise UsageError("There is no such file or directory.", layer=str(path), hint="check --data and --val")
    try:
        if root.is_file():
            return ParquetImages([_parquet_file(root)])
        found = _find_splits(root)
        if found:
            return _open_split(root, found, split)
        if split in ("val", "test"):
            raise UsageError(
                "The data set has no held-out split.",
                layer=str(root),
                hint="add a val/ folder or val.parquet, or hold part of the training images out",
            )
        whole = sorted(root.glob("*.parquet"))
        return ParquetImages(whole) if whole else FolderImages(root)
    except OSError as error:
        raise UsageError(f"The data cannot be read: {error}.", layer=str(path)) from error


def available_splits(path: str | Path) -> tuple[str, ...]:
    """Which of "train" and "val" the data at `path` is divided into; () if it is not."""
    root = Path(path).expanduser()
    found = _find_splits(root) if root.is_dir() else {}
    return tuple(name for name in ("train", "val") if name in found)


def _find_splits(root: Path) -> dict[str, list[Path]]:
    """The splits of a directory: split name to its parquet files, or to its one folder."""
    found: dict[str, list[Path]] = {}
    for split, names in _SPLITS.items():
        for name in names:
            files = sorted(root.glob(f"{name}*.parquet"))
            folder = [root / name] if (root / name).is_dir() else []
            if files or folder:
                found[split] = files or folder
                break
    return found


def _open_split(root: Path, found: dict[str, list[Path]], split: str | None) -> ImageDataset:
    chosen = split or next(iter(found))
    if chosen not in found:
        have = ", ".join(path.name for path in next(iter(found.values())))
        raise UsageError(f"There is no split '{chosen}' here, only {have}.", layer=str(root))
    files = found[chosen]
    if not files[0].is_dir():
        return ParquetImages(files)
    # Labels must mean the same in every split, also where one lacks a class.
    training = found.get("train", files)
    return FolderImages(files[0], class_folders(training[0]) if training[0].is_dir() else None)


def _parquet_file(path: Path) -> Path:
    with path.open("rb") as stream:
        if stream.read(4) == b"PAR1":
            return path
    raise UsageError(
        "Not a parquet file.",
        layer=str(path),
        hint="give parquet with image and label, or a directory of images",
    )
