"""Parquet files with encoded images, as Hugging Face publishes data sets."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from binarize.errors import UsageError
from binarize.training.data.dataset import ImageDataset
from binarize.training.data.pixels import decode


class ParquetImages(ImageDataset):
    """Parquet with encoded images (`image`: binary or struct with `bytes`) and integers (`label`)."""

    def __init__(self, files: Sequence[Path]) -> None:
        source = str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
        table = _read_parquet(files, source)
        self._encoded = _image_column(table, source)
        labels = _label_column(table, source)
        highest = int(labels.max()) if len(labels) else -1
        names = _class_names(table.schema.metadata) or [str(label) for label in range(highest + 1)]
        super().__init__(labels, names, source)

    def image(self, index: int) -> Tensor:
        return decode(self._encoded[index].as_py(), f"{self.source}, {self.describe(index)}")


def _read_parquet(files: Sequence[Path], source: str) -> Any:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        needed = sum(_uncompressed(parquet.ParquetFile(file)) for file in files)
        if needed > 0.8 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise UsageError(
                f"The parquet data takes {needed >> 20} MiB, more than this machine's memory holds.",
                layer=source,
                hint="unpack the images into a directory with one folder per class",
            )
        return pyarrow.concat_tables([parquet.read_table(file, partitioning=None) for file in files])
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0][:200]
        raise UsageError(
            f"The parquet data cannot be read: {reason}.", layer=source, hint="download it again"
        ) from error


def _uncompressed(file: Any) -> int:
    return sum(file.metadata.row_group(k).total_byte_size for k in range(file.metadata.num_row_groups))


def _image_column(table: Any, source: str) -> Any:
    import pyarrow.types as types

    column = table[_column(table, ("image", "img"), source)]
    if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        import pyarrow.compute as compute

        column = compute.struct_field(column, "bytes")
    if not (types.is_binary(column.type) or types.is_large_binary(column.type)):
        raise UsageError(
            f"The image column holds {column.type}, not encoded images.",
            layer=source,
            hint="it must be binary, or a struct with binary bytes, of JPEG or PNG data",
        )
    return column


def _label_column(table: Any, source: str) -> Tensor:
    import pyarrow.types as types

    name = _column(table, ("label", "labels"), source)
    column = table[name]
    if not types.is_integer(column.type):
        raise UsageError(
            f"The column '{name}' holds {column.type}, not integers.",
            layer=source,
            hint="number the classes from 0 and put their names into the Hugging Face features",
        )
    if column.null_count:
        raise UsageError(f"The column '{name}' has {column.null_count} empty labels.", layer=source)
    return torch.from_numpy(column.to_numpy().astype(np.int64))


def _column(table: Any, names: Sequence[str], source: str) -> str:
    for name in names:
        if name in table.column_names:
            return name
    raise UsageError(
        f"There is no column '{names[0]}', only {', '.join(table.column_names) or 'none at all'}.",
        layer=source,
        hint=f"rename the column with the data to '{names[0]}'",
    )


def _class_names(metadata: dict[bytes, bytes] | None) -> list[str] | None:
    """Class names of the Hugging Face schema metadata, None where there are none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label" if "label" in features else "labels"]["names"]
        values = list(names.values()) if isinstance(names, dict) else list(names)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return [str(value) for value in values] or None
