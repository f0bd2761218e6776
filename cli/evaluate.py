"""`binarize eval`: top-1 accuracy of a float model, a binary module or an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from binarize.cli import options
from binarize.cli.output import Output
from binarize.errors import UsageError

if TYPE_CHECKING:
    from binarize.bench.accuracy import Accuracy
    from binarize.config import Config
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

    Images are normalised as a binary file says; for a float model as training.mean and training.std say.
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
    from binarize.bench.sessions import input_shape, open_session

    session = open_session(file, threads)
    metadata = session.get_modelmeta().custom_metadata_map
    config = _config(metadata.get("binarize.config"), changes, str(file))
    batches = _batches(dataset, input_shape(session)[1:], config)
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
    from binarize.config import Config
    from binarize.example_inputs import channels_of
    from binarize.loading import load_model
    from binarize.training.data import check_classes, image_size

    if is_binary_file(file):
        binary: Any = load_binary(file, arch)
        base = Config().updated(binary.report.config, str(file)).to_toml()
        asked = size or tuple(binary.example_shapes[0][1:])
        shape = image_size(dataset, asked[0], asked)
        batches = _batches(dataset, shape, _config(base, changes, str(file)))
        return module_accuracy("binary", binary, batches, dataset, output.progress)
    loaded = load_model(file, arch, trust_pickle=trust_pickle)
    render.show_notes(output, render.source_of(loaded))
    if loaded.num_classes is not None:
        check_classes(dataset, loaded.num_classes)
    shape = image_size(dataset, channels_of(loaded.module), size)
    batches = _batches(dataset, shape, _config(None, changes, str(file)))
    return module_accuracy("float", loaded.module, batches, dataset, output.progress)


def _config(toml: str | None, changes: tuple[Path | None, list[str]], source: str) -> Config:
    """The configuration the file carries, with the command line's changes on top."""
    import tomllib

    from binarize.config import Config, read_config

    file, settings = changes
    config = Config().updated(tomllib.loads(toml), source) if toml else Config()
    return (read_config(file, config) if file is not None else config).with_settings(settings)


def _batches(dataset: ImageDataset, size: Any, config: Config) -> Any:
    from binarize.training.finetune import Feed

    return Feed(dataset, tuple(size), config).eval_batches()
