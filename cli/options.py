"""Options that several commands take, and how they become a configuration, a size, a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from binarize.errors import UsageError

if TYPE_CHECKING:
    from binarize.config import Config
    from binarize.training.data import ImageDataset


PLAN_PANEL = "What becomes binary"
LinearChoice = Literal["keep", "spatial", "all"]

ModelArgument = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="The float model: weights, a checkpoint or a module; .pt, .pth, .bin, .safetensors, TorchScript, .pt2.",
        show_default=False,
    ),
]
ArchOption = Annotated[
    str | None,
    typer.Option(
        help="What builds the model: torchvision:resnet18, timm:NAME, package.module:factory or "
        "file.py:factory. Not needed if the weights fit just one model of torchvision or timm.",
        show_default=False,
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(help="Training images: an image folder, a parquet file, or a folder of them.", show_default=False),
]
NeededDataOption = Annotated[
    Path,
    typer.Option("--data", help="Images: an image folder, a parquet file, or a folder of them.", show_default=False),
]
ValOption = Annotated[
    Path | None,
    typer.Option(help="Images to measure accuracy on. Default: the data's own val or test split.", show_default=False),
]
EpochsOption = Annotated[
    float | None, typer.Option(help="Passes over the training images. Default: 8.", show_default=False)
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="A TOML file on top of the recipe.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting, on top of everything. Repeatable."),
]
EndsOption = Annotated[
    Literal["float", "int8"] | None,
    typer.Option(
        "--stem",
        help="Type of the stem and the classifier, which stay unbinarized. int8 takes its ranges from the images.",
        show_default="float",
    ),
]
StreamOption = Annotated[
    Literal["float32", "float16"] | None,
    typer.Option(
        "--stream",
        help="Type of the feature maps between binary layers. float16 is faster where they exceed the caches.",
        show_default="float32",
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--input-size",
        metavar="C,H,W",
        help="Of one image; C,L of a signal, C,T,H,W of a clip. Default: the data's own if small, else what the "
        "model says, else 3,224,224.",
        show_default=False,
    ),
]
SeedOption = Annotated[int | None, typer.Option(help="Of everything random. Default: 0.", show_default=False)]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-pickle", help="Unpickle a module of your own class; this runs the file's code."),
]
RestartOption = Annotated[bool, typer.Option("--restart", help="Begin anew instead of going on from a checkpoint.")]
RESUMES = "the same command goes on from the last checkpoint, if one was written; --restart begins anew"


@dataclass(frozen=True)
class PlanOptions:
    """What a conversion is made of and what becomes binary: the options that end up in the configuration."""

    recipe: Annotated[
        str | None,
        typer.Option(help="A published system, see `binarize recipes`. Default: el.", show_default=False),
    ] = None
    config: ConfigOption = None
    settings: SetOption = None
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="WHAT",
            help="What stays float: a glob on layers ('layer4.*'), or a rule or trait ('rule:depthwise', "
            "'rule:projection', 'rule:3x3'; docs/plan.md). Repeatable.",
            rich_help_panel=PLAN_PANEL,
        ),
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="WHAT",
            help="What may become binary, written as for --keep; all else stays float. Repeatable.",
            rich_help_panel=PLAN_PANEL,
        ),
    ] = None
    linear: Annotated[
        LinearChoice | None,
        typer.Option(
            help="Linear layers as 1x1 convs: 'keep' leaves them float, 'spatial' takes those on feature maps "
            "(ConvNeXt), 'all' every one but the classifier. Default: keep.",
            show_default=False,
            rich_help_panel=PLAN_PANEL,
        ),
    ] = None
    binarize_stem: Annotated[
        bool,
        typer.Option("--binarize-stem", help="Binarize the first conv too.", rich_help_panel=PLAN_PANEL),
    ] = False
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail if a conv stays float that is no stem, classifier or gate and that you did not keep.",
            rich_help_panel=PLAN_PANEL,
        ),
    ] = False

    def settle(
        self,
        *,
        epochs: float | None = None,
        stem: str | None = None,
        stream: str | None = None,
        seed: int | None = None,
    ) -> Config:
        """The configuration that the options describe; `--keep` and `--only` add to what the file has.

        Raises:
            UsageError: an unknown recipe, key or value.
        """
        from binarize.api import resolve_config

        settled = resolve_config(self.recipe, self.config, self.settings or ())
        surgery = settled.surgery
        given: dict[str, Any] = {
            "keep": [*surgery.keep, *(self.keep or ())],
            "only": [*surgery.only, *(self.only or ())],
            "linear": self.linear or surgery.linear,
            "binarize_stem": self.binarize_stem or surgery.binarize_stem,
            "strict": self.strict or surgery.strict,
        }
        values: dict[str, Any] = {"surgery": given, "export": export_settings(stem, stream)}
        if epochs is not None:
            values["training"] = {"epochs": epochs}
        if seed is not None:
            values["seed"] = seed
        return settled.updated(values, "command line")


def export_settings(stem: str | None, stream: str | None) -> dict[str, str]:
    """What the options of the ONNX file say, for the table [export]; nothing where they are not given."""
    return {name: value for name, value in (("stem", stem), ("stream", stream)) if value is not None}


def parse_size(text: str | None) -> tuple[int, ...] | None:
    """`C,H,W` as numbers; `C,L` and `C,T,H,W` too."""
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if not 2 <= len(parts) <= 4 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--input-size {text!r} is not C,H,W", hint="for example --input-size 3,224,224")
    return tuple(int(part) for part in parts)


def held_out(data: Path, val: Path | None) -> ImageDataset | None:
    """The images to measure accuracy on: `val`, else `data`'s own held-out split, else None."""
    from binarize.training.data import available_splits, open_dataset

    if val is None and "val" not in available_splits(data):
        return None
    path = val or data
    return open_dataset(path, split="val" if "val" in available_splits(path) else None)


def everything(data: Path) -> ImageDataset:
    """All images at `data`, for data without splits."""
    from binarize.training.data import open_dataset

    return open_dataset(data)
