"""`binarize eval`: top-1 accuracy of a float model, a binary module or an ONNX file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from binarize.cli import options
from binarize.cli.output import Output
from binarize.config import Config, read_config
from binarize.errors import UsageError
from binarize.preprocessing import Preprocessing

if TYPE_CHECKING:
    from binarize.bench.accuracy import Accuracy
    from binarize.training.data import ImageDataset

EVAL_EXAMPLES = (
    "binarize eval net.onnx --data imagenet/",
    "binarize eval resnet18.pth --data test.parquet",
    "binarize eval net.pth --arch my.models:net --data test.parquet --config net.run/config.toml",
)


def evaluate(
    output: Output,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A float model, a binary .pt, or an .onnx file.", show_default=False),
    ],
    data: options.NeededDataOption,
    arch: options.ArchOption = None,
    config: options.ConfigOption = None,
    settings: options.SetOption = None,
    input_size: options.SizeOption = None,
    threads: Annotated[int, typer.Option(min=0, help="For .onnx: threads, 0 = all cores.")] = 0,
    trust_pickle: options.TrustOption = False,
) -> None:
    """Measure top-1 accuracy and speed on labelled images, by default on the data's held-out split.

    Images are seen as a binary file says, or as a float model or the files beside its weights say, where they do;
    training.mean, training.std, training.crop_pct and training.interpolation go before either.
    """
    from binarize.loading import is_onnx_file

    size = options.parse_size(input_size)
    dataset = options.held_out(data, None) or options.everything(data)
    changes = (config, settings or [])
    if is_onnx_file(file):
        if size is not None:
            raise UsageError("an ONNX file says itself what it takes", layer=str(file), hint="leave out --input-size")
        found = _onnx(file, dataset, changes, threads, output)
    else:
        found = _module(file, dataset, changes, arch, size, trust_pickle, output)
    output.table(
        str(file),
        ("kind", "top-1", "images", "images/s"),
        [(found.kind, f"{found.top1:.2%}", found.images, f"{found.images_per_second:.0f}")],
    )
    output.result({"file": file, "data": data, **found.to_dict()}, brief=f"{found.top1:.6f}")


def _onnx(
    file: Path, dataset: ImageDataset, changes: tuple[Path | None, list[str]], threads: int, output: Output
) -> Accuracy:
    from binarize.bench.accuracy import onnx_accuracy
    from binarize.bench.sessions import image_shape, open_session
    from binarize.training.data import image_size

    session = open_session(file, threads)
    metadata = session.get_modelmeta().custom_metadata_map
    own = metadata.get("binarize.config")
    known = _recorded(tomllib.loads(own), file.name) if own else Preprocessing()
    taken = image_shape(session)
    shape, known = image_size(dataset, taken[0], known, taken, asker=file.name)
    batches = _batches(dataset, shape, changes, known, output)
    return onnx_accuracy(session, batches, dataset, output.progress)


def _module(
    file: Path,
    dataset: ImageDataset,
    changes: tuple[Path | None, list[str]],
    arch: str | None,
    size: tuple[int, ...] | None,
    trust_pickle: bool,
    output: Output,
) -> Accuracy:
    from binarize.bench.accuracy import module_accuracy
    from binarize.binary_file import is_binary_file, load_binary
    from binarize.cli import render
    from binarize.example_inputs import channels_of
    from binarize.loading import load_model, stated_by
    from binarize.training.data import check_classes, image_size

    if is_binary_file(file):
        binary: Any = load_binary(file, arch)
        own = tuple(binary.example_shapes[0][1:])
        known = _recorded(binary.report.config, file.name)
        asked, asker = (own, file.name) if size is None else (size, "option")
        shape, known = image_size(dataset, asked[0], known, asked, asker=asker)
        batches = _batches(dataset, shape, changes, known, output)
        return module_accuracy("binary", binary, batches, dataset, output.progress)
    loaded = load_model(file, arch, trust_pickle=trust_pickle)
    render.show_notes(output, render.source_of(loaded))
    if loaded.num_classes is not None:
        check_classes(dataset, loaded.num_classes)
    shape, known = image_size(dataset, channels_of(loaded.module), stated_by(loaded.module), size)
    batches = _batches(dataset, shape, changes, known, output)
    return module_accuracy("float", loaded.module, batches, dataset, output.progress)


def _recorded(config: dict[str, Any], source: str) -> Preprocessing:
    """How the images of a binary file are seen, by the configuration in it."""
    return Preprocessing.configured(Config().updated(config, source), source)


def _batches(
    dataset: ImageDataset, size: Any, changes: tuple[Path | None, list[str]], known: Preprocessing, output: Output
) -> Any:
    """Images of `size` as the command line says, then as is `known`; says which it was."""
    from binarize.api import settle_preprocessing
    from binarize.training.finetune import Feed

    file, settings = changes
    config = Config() if file is None else read_config(file, Config())
    config, images = settle_preprocessing(config.with_settings(settings), known)
    for line in images.with_warning().lines():
        output.note(line)
    return Feed(dataset, tuple(size), config).eval_batches()
