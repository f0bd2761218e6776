"""An ImageFolder: one directory per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from binarize.errors import UsageError
from binarize.training.data.dataset import ImageDataset
from binarize.training.data.pixels import decode

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}


class FolderImages(ImageDataset):
    """An ImageFolder: one directory per class with the images somewhere below it."""

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        own = class_folders(root)
        names = list(classes) if classes is not None else own
        if strange := sorted(set(own) - set(names)):
            raise UsageError(f"The class '{strange[0]}' is not among the training classes.", layer=str(root))
        self.files: list[Path] = []
        labels: list[int] = []
        for name in own:
            found = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
            if not found:
                raise UsageError(
                    f"The class '{name}' has no images.",
                    layer=str(root),
                    hint=f"remove {root / name} or fill it",
                )
            self.files += found
            labels += [names.index(name)] * len(found)
        super().__init__(torch.tensor(labels, dtype=torch.int64), names, str(root))

    def image(self, index: int) -> Tensor:
        return decode(self.files[index], self.describe(index))

    def describe(self, index: int) -> str:
        return str(self.files[index])


def class_folders(root: Path) -> list[str]:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UsageError(
            "No images here: neither class folders nor parquet files.",
            layer=str(root),
            hint="expected root/class/image.jpg, root/train/class/image.jpg or train.parquet",
        )
    return names
