"""The conductor: every public function, each a short list of stations."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from binarize.binary_file import save_binary
from binarize.config import Config, read_config
from binarize.errors import UsageError
from binarize.files import check_writable, write_text
from binarize.loading import Loaded, load_model
from binarize.progress import Listener, ProgressEvent, silent
from binarize.recipes import get_recipe
from binarize.report import Report
from binarize.surgery import binarize_model, default_example_inputs, plan_model

InputSize = tuple[int, int, int]


@dataclass
class Conversion:
    """What `convert` made.

    Attributes:
        module: the fine-tuned binary module, in eval mode.
        report: decisions and results; also in the ONNX file and in the run folder.
        path: the ONNX file.
        run: the folder beside it: configuration, report, history, versions, checkpoints.
    """

    module: GraphModule
    report: Report
    path: Path
    run: Path


def resolve_config(
    recipe: str | None = None, config: Config | str | Path | None = None, settings: Iterable[str] = ()
) -> Config:
    """A recipe's configuration with a TOML file and `key=value` settings on top.

    A `Config` is taken as it is; a file's own `recipe` key counts unless `recipe` is given.
    """
    if isinstance(config, Config):
        return config.with_settings(settings)
    base = get_recipe(recipe or "el").config
    if config is not None:
        named = read_config(config, base).recipe
        base = get_recipe(recipe or named).config
        base = read_config(config, base).updated({"recipe": base.recipe})
    return base.with_settings(settings)


def load(path: str | Path, arch: str | None = None, *, trust_pickle: bool = False) -> nn.Module:
    """The float model in the file at `path`, in eval mode. See `binarize.loading` for formats and errors."""
    return load_model(path, arch, trust_pickle=trust_pickle).module


def apply(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    recipe: str = "el",
    config: Config | str | Path | None = None,
) -> GraphModule:
    """A trainable binary copy of `model`: every conv but the planned exceptions binary, Elastic Links inserted.

    Args:
        model: the float CNN; it stays as it is.
        example_inputs: what `model` takes, batch first; by default two random images of 224 x 224.
        recipe: name of a published system, see `binarize.recipes`.
        config: a `Config`, or a TOML file that goes on top of the recipe.

    Returns:
        An fx `GraphModule` with the original's parameter names where they survive, and a `.report`.

    Raises:
        UnsupportedModelError: the model cannot be traced, has no conv, or holds NaN.
        UsageError: the inputs do not fit, or the configuration is wrong.
    """
    settled = resolve_config(recipe, config)
    return binarize_model(model, as_inputs(example_inputs) or default_example_inputs(model), settled)


def inspect(model: nn.Module, config: Config, example_inputs: tuple[Tensor, ...] | None = None) -> Report:
    """What `apply` would decide about every conv, without changing anything."""
    return plan_model(model, example_inputs or default_example_inputs(model), config)


def finetune(
    module: GraphModule,
    teacher: nn.Module,
    data: str | Path | Any,
    *,
    val_data: str | Path | Any | None = None,
    config: Config | None = None,
    input_size: InputSize | None = None,
    checkpoint: str | Path | None = None,
    progress: Listener = silent,
) -> GraphModule:
    """Fine-tune a freshly binarized `module` in place, with the float model as teacher.

    Args:
        module: from `apply`.
        teacher: the float model it came from.
        data: an image folder, a parquet file or folder, or a data set object (`binarize.training.data`).
        val_data: the same, for accuracy at each epoch's end.
        config: by default the one `apply` used.
        input_size: (C, H, W), by default that of `apply`'s example inputs.
        checkpoint: file to write to and to resume from.

    Returns:
        `module`, in eval mode; history and accuracies are in `module.report.results["training"]`.
    """
    from binarize.training import finetune as run

    report: Report = module.report  # type: ignore[assignment]
    settled = config or Config().updated(report.config)
    size = input_size or tuple(module.example_shapes[0][1:])  # type: ignore[index]
    result = run(
        module,
        teacher,
        _dataset(data, "train"),
        settled,
        input_size=size,  # type: ignore[arg-type]
        val_set=None if val_data is None else _dataset(val_data, "val"),
        checkpoint=None if checkpoint is None else Path(checkpoint),
        progress=progress,
    )
    report.results["training"] = {**result.results, "history": result.history}
    return module


def export(
    module: GraphModule,
    path: str | Path,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    *,
    check: bool = True,
    progress: Listener = silent,
) -> Report:
    """Write `module` as ONNX with packed weights, after proving that the file computes what was trained.

    Args:
        module: from `apply`, trained or not.
        path: the file to write; replaced only when everything succeeded.
        example_inputs: inputs for the proof, by default random ones of `apply`'s shape.
        check: whether to run the proof.

    Returns:
        The module's report with `results["size"]` and `results["verification"]`.

    Raises:
        VerificationError: the proof failed; nothing is written.
        UnsupportedModelError: the model has no ONNX form.
    """
    from binarize.exporting import emit, verify, write_onnx
    from binarize.exporting.size import size_report
    from binarize.lowering import lower

    check_writable(path)
    report: Report = module.report  # type: ignore[assignment]
    inputs = as_inputs(example_inputs) or _inputs_like(module)
    progress(ProgressEvent("exporting", 0, 3))
    lowered = lower(module, inputs)
    progress(ProgressEvent("exporting", 1, 3))
    report.results["size"] = {}
    model = emit(lowered, inputs, {})
    progress(ProgressEvent("exporting", 2, 3))
    if check:
        report.results["verification"] = verify(lowered, model, inputs).to_dict()
    report.results["size"] = size_report(model, report)
    for key, value in _metadata(report).items():
        model.metadata_props.add(key=key, value=value)
    write_onnx(model, path)
    progress(ProgressEvent("exporting", 3, 3))
    return report


def convert(
    model: nn.Module | str | Path,
    out: str | Path,
    *,
    arch: str | None = None,
    recipe: str | None = None,
    config: Config | str | Path | None = None,
    settings: Iterable[str] = (),
    data: str | Path | Any | None = None,
    val_data: str | Path | Any | None = None,
    input_size: InputSize | None = None,
    trust_pickle: bool = False,
    restart: bool = False,
    progress: Listener = silent,
) -> Conversion:
    """The whole way: load, binarize, fine-tune if there is data, export, prove.

    Beside `out` a folder `<out>.run` keeps configuration, versions, report, history and checkpoints; running the
    same conversion again continues from the last checkpoint.

    Args:
        model: a module, or a file for `load`.
        out: the ONNX file to write.
        data, val_data: see `finetune`; without data the result is valid but needs fine-tuning to be accurate.
        restart: throw away a previous run's checkpoints.

    Raises:
        BinarizeError: see the stations' own functions.
    """
    started = time.monotonic()
    settled = resolve_config(recipe, config, settings)
    check_writable(out)
    loaded = model if isinstance(model, nn.Module) else load_model(model, arch, trust_pickle=trust_pickle)
    teacher = loaded.module if isinstance(loaded, Loaded) else loaded
    train_set = None if data is None else _dataset(data, "train")
    val_set = None if val_data is None else _dataset(val_data, "val")
    inputs = default_example_inputs(teacher, input_size or _image_size(train_set, teacher))
    run = _run_folder(Path(out), settled, restart)
    results: dict[str, Any] = _source(loaded) if isinstance(loaded, Loaded) else {}
    if train_set is not None:
        teacher = _adapted(teacher, train_set, val_set, settled, inputs, run, results, progress)
    module = binarize_model(teacher, inputs, settled)
    report: Report = module.report  # type: ignore[assignment]
    report.results.update(results)
    if train_set is not None:
        checkpoint = run / "binary.ckpt"
        finetune(module, teacher, train_set, val_data=val_set, checkpoint=checkpoint, progress=progress)
        write_text(run / "history.json", json.dumps(report.results["training"]["history"], indent=1))
    module.eval()
    if isinstance(loaded, Loaded):
        save_binary(run / "binary.pt", module, loaded)
    export(module, out, inputs, progress=progress)
    report.results["seconds"] = round(time.monotonic() - started, 1)
    write_text(run / "report.json", report.to_json())
    return Conversion(module, report, Path(out), run)


def as_inputs(example_inputs: Tensor | tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
    """`example_inputs` as a tuple; a batch of one is doubled, because a traced batch of one would stay one."""
    if example_inputs is None:
        return None
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    return tuple(torch.cat([x, x]) if x.dim() and x.shape[0] == 1 else x for x in inputs)


def versions() -> dict[str, str]:
    """Versions and machine, for the record beside a result."""
    import importlib.metadata

    names = ("binarize-nn", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy", "accelerate")
    found = {name: _version(importlib.metadata.version, name) for name in names}
    return {**found, "python": platform.python_version(), "machine": platform.platform()}


def _version(lookup: Any, name: str) -> str:
    try:
        return str(lookup(name))
    except Exception:
        return "not installed"


def _adapted(
    teacher: nn.Module,
    train_set: Any,
    val_set: Any,
    config: Config,
    inputs: tuple[Tensor, ...],
    run: Path,
    results: dict[str, Any],
    progress: Listener,
) -> nn.Module:
    """The teacher, adapted to the data first if the configuration says so; its accuracy goes into `results`."""
    from binarize.training import adapt_float
    from binarize.training.finetune import float_accuracy

    size: Any = tuple(inputs[0].shape[1:])
    if val_set is not None:
        results["float_top1"] = float_accuracy(teacher, val_set, config, size, progress)
    if config.training.float_epochs > 0:
        adapted = adapt_float(
            teacher,
            train_set,
            config,
            input_size=size,
            val_set=val_set,
            checkpoint=run / "float.ckpt",
            progress=progress,
        )
        results["float_adaptation"] = {**adapted.results, "history": adapted.history}
        if val_set is not None:
            results["float_top1_before_adaptation"] = results["float_top1"]
            results["float_top1"] = float_accuracy(teacher, val_set, config, size, progress)
    return teacher


def _source(loaded: Loaded) -> dict[str, Any]:
    """Where the float model came from; the file's name only, because the record travels with the model."""
    facts = {name: getattr(loaded, name) for name in ("kind", "arch", "arch_how", "num_classes")}
    return {"source": {"file": Path(loaded.source).name, **facts, "notes": list(loaded.notes)}}


def _dataset(data: Any, split: str) -> Any:
    from binarize.training.data import open_dataset

    return open_dataset(data, split=split) if isinstance(data, str | Path) else data


def _image_size(dataset: Any, model: nn.Module) -> InputSize | None:
    """The data's own image size if its images are small, so that CIFAR nets need no --input-size."""
    if dataset is None:
        return None
    _, height, width = dataset.image(0).shape
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 3
    return (channels, int(height), int(width)) if max(height, width) <= 64 else None


def _inputs_like(module: GraphModule) -> tuple[Tensor, ...]:
    like = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    shapes: Any = module.example_shapes
    return tuple(torch.randn(shape, generator=generator).to(like.dtype) for shape in shapes)


def _run_folder(out: Path, config: Config, restart: bool) -> Path:
    run = out.with_name(out.name.removesuffix(".onnx") + ".run")
    try:
        run.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the run folder: {error.strerror}", layer=str(run)) from error
    if restart:
        for checkpoint in run.glob("*.ckpt"):
            checkpoint.unlink()
    write_text(run / "config.toml", config.to_toml())
    write_text(run / "environment.json", json.dumps(versions(), indent=1))
    return run


def _metadata(report: Report) -> dict[str, str]:
    """What the ONNX file says about itself."""
    slim = {key: value for key, value in report.results.items() if key != "training"}
    return {
        "binarize.report": json.dumps({**report.to_dict(), "results": slim}),
        "binarize.config": Config().updated(report.config).to_toml(),
        "binarize.versions": json.dumps(versions()),
    }
