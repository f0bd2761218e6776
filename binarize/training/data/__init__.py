"""Images with labels from folders, parquet or memory, as normalised batches that never vary between runs."""

from binarize.training.data.augment import Augment
from binarize.training.data.batches import Loader, make_loader
from binarize.training.data.dataset import (
    MAX_CACHE_BYTES,
    ImageDataset,
    Subset,
    TensorImages,
    check_classes,
    check_labels,
    image_size,
    split_train_val,
)
from binarize.training.data.folder import FolderImages
from binarize.training.data.parquet import ParquetImages
from binarize.training.data.sources import available_splits, open_dataset

__all__ = [
    "MAX_CACHE_BYTES",
    "Augment",
    "FolderImages",
    "ImageDataset",
    "Loader",
    "ParquetImages",
    "Subset",
    "TensorImages",
    "available_splits",
    "check_classes",
    "check_labels",
    "image_size",
    "make_loader",
    "open_dataset",
    "split_train_val",
]
