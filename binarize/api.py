"""The conductor: every public function, each a short list of stations."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from binarize.binary_file import save_binary
from binarize.config import Config, read_config
from binarize.errors import UnsupportedModelError, UsageError
from binarize.example_inputs import as_size, channels_of, default_example_inputs, dimensions, evaluate
from binarize.files import check_folder, check_not_input, check_writable, write_text
from binarize.loading import Loaded, load_model, stated_by
from binarize.machine import versions
from binarize.nn import Region
from binarize.passes.plan import check_weights
from binarize.preprocessing import DEFAULT, Preprocessing
from binarize.progress import Listener, ProgressEvent, silent
from binarize.recipes import get_recipe
from binarize.report import Report
from binarize.surgery import binarize_model, example_like, report_of, unwrapped

if TYPE_CHECKING:
    import onnxruntime

InputSize = tuple[int, ...]
"""Of one input without its batch: (C, H, W), (C, L) for a signal, (C, T, H, W) for a clip; data has images."""
PROOF_IMAGES = 8
"""How many images the proof of equality looks at."""
OF_A_FILE = ("fixed_batch", "int8", "parts", "size", "verification")
"""Results that `export` measures or proves."""
INT8_IMAGES = 256
"""How many images an int8 stem gets: one half sets its ranges, the other compares its answers with the float one's."""


@dataclass
class Conversion:
    """What `convert` made.

    Attributes:
        module: the fine-tuned binary module, in eval mode.
        report: decisions and results; also in the ONNX file and in the run folder.
        path: the ONNX file, or the folder of parts.
        run: the folder beside it: configuration, report, history, versions, checkpoints.
    """

    module: nn.Module = field(repr=False)
    report: Report = field(repr=False)
    path: Path
    run: Path


def resolve_config(
    recipe: str | None = None, config: Config | str | Path | None = None, settings: Iterable[str] = ()
) -> Config:
    """A recipe's configuration with a TOML file and `key=value` settings on top.

    A `Config` is taken as it is; a file's own `recipe` key counts unless `recipe` is given.

    Raises:
        UsageError: there is no such recipe, file or setting, or a value that it cannot have.
    """
    if isinstance(config, Config):
        return config.with_settings(settings)
    if config is not None and not isinstance(config, str | Path):
        raise UsageError(
            f"the configuration is a {type(config).__name__}",
            hint="give a binarize.Config, such as Config().updated({...}), or a TOML file",
        )
    base = get_recipe(recipe or "el").config
    if config is not None:
        named = read_config(config, base).recipe
        base = get_recipe(recipe or named).config
        base = read_config(config, base).updated({"recipe": base.recipe})
    return base.with_settings(settings)


def load(path: str | Path, arch: str | None = None, *, trust_pickle: bool = False) -> nn.Module:
    """The float model in the file at `path`, in eval mode. See `binarize.loading` for formats and errors.

    What is certain of its images is its `pretrained_cfg`, as with timm's models, for `apply` and `convert` to go by.
    """
    return load_model(path, arch, trust_pickle=trust_pickle).module


def apply(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    recipe: str | None = None,
    config: Config | str | Path | None = None,
    *,
    inplace: bool = False,
) -> nn.Module:
    """A trainable binary copy of `model`: every conv but the planned exceptions binary, Elastic Links inserted.

    Args:
        model: the float CNN; it stays as it is, unless `inplace`.
        example_inputs: what `model` takes, batch first; by default two random images of the size that its
            `pretrained_cfg` says, else 224 x 224, or what its first conv suggests.
        recipe: name of a published system, see `binarize.recipes`; by default `config`'s own, or `el`.
        config: a `Config`, or a TOML file that goes on top of the recipe.
        inplace: change `model` itself instead of a copy, and return it.

    Returns:
        The module, with the original's parameter names and a `.report`. Where fx can trace the whole model it is a
        `GraphModule`; else a module of the model's own class that calls one `GraphModule` for each part it can.
        How `finetune` will show it images, and who says so, is in `.report.results["preprocessing"]`.

    Raises:
        UnsupportedModelError: the model has no conv, or holds NaN.
        UsageError: the inputs do not fit, or the configuration is wrong.
    """
    model = unwrapped(model)
    settled, images = settle_preprocessing(resolve_config(recipe, config), model)
    inputs = as_inputs(example_inputs)
    guessed = inputs is None
    if inputs is None:
        inputs, images = inputs_for(model, images)
    module = with_preprocessing(model, inputs, settled, images, inplace=inplace)
    module.example_guessed = guessed  # type: ignore[assignment]
    return module


def inspect(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    recipe: str | None = None,
    config: Config | str | Path | None = None,
) -> Report:
    """What `apply` would decide about every conv, with the same arguments, without changing anything."""
    return report_of(apply(model, example_inputs, recipe, config))


def calibrate(module: nn.Module, teacher: nn.Module, images: Tensor | Iterable[Tensor | tuple[Any, ...]]) -> nn.Module:
    """Give a freshly binarized `module` its start, in place: what `finetune` does before its first step.

    Sets thresholds as the recipe says, lets inserted batch norms begin with the scale and offset of the float convs,
    and measures batch norm statistics. Without it a training loop of your own starts further away.

    Args:
        module: from `apply`.
        teacher: the float model it came from.
        images: one batch, or several, normalised as for training. A batch is a tensor [N, C, H, W] or, where the model
            takes more than one tensor, a tuple of all that it takes: for one batch `[(left, right)]`.

    Returns:
        `module`.

    Raises:
        UsageError: there is no batch, or the module does not run on it, and is left as it was.
    """
    from binarize.training import calibrate as run

    inner = unwrapped(module)
    settled = Config().updated(report_of(inner).config)
    batches = [images] if isinstance(images, Tensor) else list(images)
    run(inner, unwrapped(teacher), batches, threshold=settled.conv.threshold)
    return module


def parameter_groups(module: nn.Module, *, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """What an Adam of your own takes instead of `module.parameters()`, each group with its peak rate.

    A latent weight's rate is a share of its layer's mean |weight| (`training.weight_step`), that of everything else
    `training.learning_rate`, as the recipe of `module` says. Only float convs and linear layers decay: decay moves no
    sign, and pulls gammas, thresholds and slopes to a 0 that means nothing.
    """
    from binarize.training import parameter_groups as groups

    module = unwrapped(module)
    training = Config().updated(report_of(module).config).training
    return groups(
        module, learning_rate=training.learning_rate, weight_step=training.weight_step, weight_decay=weight_decay
    )


def finetune(
    module: nn.Module,
    teacher: nn.Module,
    data: str | Path | Any,
    *,
    val_data: str | Path | Any | None = None,
    config: Config | str | Path | None = None,
    input_size: InputSize | None = None,
    checkpoint: str | Path | None = None,
    progress: Listener = silent,
) -> nn.Module:
    """Fine-tune a freshly binarized `module` in place, with the float model as teacher.

    Args:
        module: from `apply`.
        teacher: the float model it came from.
        data: an image folder, a parquet file or folder, or a data set object (`binarize.training.data`).
        val_data: the same, for accuracy at each epoch's end.
        config: a `Config`, or a TOML file; by default the one `apply` used. Its `seed` and `training` count; how images
            are normalised stays as `apply` found it where it says `auto`.
        input_size: (C, H, W), by default that of `apply`'s example inputs, which has to be given to one of the two if
            the images are small (up to 64 pixels). `export` writes a file for what was trained.
        checkpoint: file to write to and to resume from.

    Returns:
        `module`, in eval mode; history and accuracies are in `module.report.results["training"]`.

    Raises:
        UsageError: data, configuration, checkpoint and model do not fit each other, or the weights are frozen.
        UnsupportedModelError: the model is no classifier of images.
        BinarizeError: the training diverged.
    """
    from binarize.training import finetune as run

    inner = unwrapped(module)
    report = report_of(inner)
    planned = Config().updated(report.config)
    settled, images = _images_of(report, None if config is None else resolve_config(config=config))
    train_set, val_set = _dataset(data, "train"), _dataset(val_data, "val")
    if train_set is None:
        raise UsageError("there is no data to fine-tune on", hint="give a folder, a parquet file or a data set object")
    # Goes into the file: how images are normalised, above all. What surgery did is not what `settled` may say.
    report.config = replace(planned, seed=settled.seed, training=settled.training).to_dict()
    size = as_size(input_size or inner.example_shapes[0][1:])  # type: ignore[index, arg-type]
    if input_size is None and getattr(inner, "example_guessed", False):
        _check_guess(size, train_set, images)
    images = images if images.size == size[1:] else images.sized(size[1:], "option")
    report.results["preprocessing"] = images.with_warning().to_dict()
    result = run(
        inner,
        unwrapped(teacher),
        train_set,
        settled,
        input_size=size,  # type: ignore[arg-type]
        val_set=val_set,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        progress=progress,
    )
    report.results["training"] = {**result.results, "history": result.history}
    inner.example_shapes[0][1:] = size  # type: ignore[index, operator, assignment]
    return module.eval()


def export(
    module: nn.Module,
    path: str | Path,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    *,
    images: Tensor | None = None,
    check: bool = True,
    progress: Listener = silent,
) -> Report:
    """Write `module` as ONNX with packed weights, after proving that the file computes what was trained.

    A model that one graph holds becomes one file. Others, detectors above all, are written in parts: a folder with a
    file for every graph, for `assemble` to run inside the float rest. So does every module whose class is its own
    (`report.untraced` says why), unless `path` ends in `.onnx`: then `torch.export` has to hold it as a whole.

    Args:
        module: from `apply`, trained or not.
        path: the file or folder to write; replaced only when everything succeeded. Its outputs are the module's
            tensors, in order; what else the module returns, sizes say, is left out.
        example_inputs: what the proof runs, by default random inputs of `apply`'s shapes. The file takes any number of
            images, but maps of the size of these alone: export again for another. Its inputs are the tensors among
            them, in order: `input`, or `input_0`, `input_1` and so on. Numbers, flags and None stay what they are.
        images: real, normalised images [N, C, H, W] that set the ranges if the configuration asks for an int8 stem;
            without them its inputs are random and its accuracy is left to chance.
        check: whether to run the proof, which is about the model before its stem becomes int8.

    Returns:
        The module's report with `results["size"]`, `results["verification"]` and perhaps `results["int8"]`, and
        `results["fixed_batch"]` if the model's code left no batch but that of `example_inputs`.

    Raises:
        VerificationError: the proof failed; nothing is written.
        UnsupportedModelError: the model has no ONNX form, or its weights hold NaN.
        UsageError: `path` cannot be written to.
    """
    from binarize.exporting import emit, verify, write_onnx
    from binarize.exporting.metadata import set_metadata
    from binarize.lowering import float_inputs, lower

    module = unwrapped(module)
    report = report_of(module)
    check_output(module, path)
    check_weights(module)
    inputs = as_inputs(example_inputs) or _inputs_like(module)
    for name in OF_A_FILE:  # what an earlier export found is not said of this file
        report.results.pop(name, None)
    if in_parts(module, path):
        from binarize.assembly import write_parts

        write_parts(module, path, inputs, report, check=check, progress=progress)
        return report
    progress(ProgressEvent("exporting", 0, 3))
    config = Config().updated(report.config)
    try:
        lowered = lower(module, inputs, config)
        if lowered.takes_one_batch_size:
            report.results["fixed_batch"] = len(float_inputs(inputs)[0])
        progress(ProgressEvent("exporting", 1, 3))
        model = emit(lowered, inputs)
    except UnsupportedModelError as error:
        if report.untraced:
            error.message += f"; its code was not traced either: {report.untraced[0]}"
        if not isinstance(module, Region):
            error.hint = error.hint or "name a folder instead of an .onnx file: it is then exported in parts"
        if example_inputs is not None:
            _check_runs(module, inputs)
        raise
    progress(ProgressEvent("exporting", 2, 3))
    if check:
        report.results["verification"] = verify(lowered, model, inputs).to_dict()
    if config.export.stem == "int8":
        model = _int8_ends(model, inputs, images, report, progress)
    set_metadata(model, report)
    write_onnx(model, path)
    progress(ProgressEvent("exporting", 3, 3))
    return report


def in_parts(module: nn.Module, path: str | Path) -> bool:
    """Whether `export(module, path)` writes a folder of parts."""
    return not isinstance(module, Region) and Path(path).suffix != ".onnx"


def check_output(module: nn.Module, path: str | Path) -> None:
    """Raise UsageError if `export(module, path)` could not write there."""
    if in_parts(module, path):
        from binarize.assembly import foreign_content

        check_folder(path, foreign_content)
    else:
        check_writable(path)


def _check_early(out: str | Path) -> None:
    """What can be said before the module is there: that `out` can be written, and that the proof can run."""
    from binarize.assembly import foreign_content
    from binarize.exporting import check_runtime

    check_runtime()
    if Path(out).is_dir():
        check_folder(out, foreign_content)
    else:
        check_writable(out)


def assemble(
    folder: str | Path, model: nn.Module | None = None, *, sess_options: onnxruntime.SessionOptions | None = None
) -> nn.Module:
    """A model that was exported in parts, ready to run: its parts in ONNX Runtime, the float rest in PyTorch.

    Args:
        folder: written by `export` or `convert`.
        model: the float model, with any weights; it stays as it is. May be left out where the folder says how to
            build it, as it does for models of torchvision and timm that `convert` read from a file.
        sess_options: of ONNX Runtime, for every part.

    Returns:
        A module of the float model's class in eval mode that takes what the float model takes.

    Raises:
        UsageError: `folder` holds no parts, or the model has to be passed.
        UnsupportedModelError: `model` is another one, or the folder is damaged.
    """
    from binarize.assembly import assemble as run

    return run(folder, model, sess_options=sess_options)


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
        out: the ONNX file to write, or the folder where the model has to be written in parts (see `export`).
        input_size: (C, H, W); by default what the model says, but for small images, else 224 x 224.
        data, val_data: see `finetune`; without data the result is valid but needs fine-tuning to be accurate.
        restart: throw away a previous run's checkpoints.

    Raises:
        BinarizeError: see the stations' own functions.
    """
    started = time.monotonic()
    settled = resolve_config(recipe, config, settings)
    _check_early(out)
    check_not_input(out, model)
    loaded = None if isinstance(model, nn.Module) else load_model(model, arch, trust_pickle=trust_pickle)
    teacher = copy.deepcopy(unwrapped(model)) if isinstance(model, nn.Module) else loaded.module  # type: ignore[union-attr]
    settled, seen = settle_preprocessing(settled, teacher)
    train_set, val_set = _dataset(data, "train"), _dataset(val_data, "val")
    with run_folder(out, settled, restart) as run:
        if train_set is None:
            _check_untrained(run, out)
            inputs, seen = inputs_for(teacher, seen, input_size)
            module = with_preprocessing(teacher, inputs, settled, seen)
            proof = images = None
        else:
            module = distill(teacher, train_set, val_set, settled, seen, run, input_size=input_size, progress=progress)
            proof = (some_images(val_set or train_set, module, PROOF_IMAGES),)
            images = some_images(train_set, module) if settled.export.stem == "int8" else None
        report = report_of(module)
        if loaded is not None:
            report.results["source"] = _source(loaded)
            save_binary(run / "binary.pt", module.eval(), loaded)
        export(module, out, proof, images=images, progress=progress)
        report.results["seconds"] = round(time.monotonic() - started, 1)
        _record_run(run, settled)
        write_text(run / "report.json", report.to_json())
    return Conversion(module, report, Path(out), run)


def _check_untrained(run: Path, out: str | Path) -> None:
    """Refuse to replace what an earlier run has trained by a net that is not."""
    if any(run.glob("*.ckpt")):
        raise UsageError(
            "an earlier run has trained this model, and without data it would be replaced by an untrained one",
            layer=str(out),
            hint="add --data to go on with it, choose another --out, or pass --restart to begin anew",
        )


def settle_preprocessing(config: Config, model: nn.Module | Preprocessing) -> tuple[Config, Preprocessing]:
    """`config` with nothing `auto` left of how images are seen, and who says each value.

    `config` itself goes first, then what `model` says, then the defaults.

    Args:
        model: the float model, or what is known of how its images are seen.
    """
    own = Preprocessing.configured(config)
    stated = model if isinstance(model, Preprocessing) else stated_by(model)
    contradicted = stated.differing(own)
    if contradicted:
        sources = ", ".join(dict.fromkeys(stated.sources[name] for name in contradicted))
        stated = stated.hinted(f"{', '.join(contradicted)}: as configured, though {sources} says otherwise.")
    images = own.over(stated).over(DEFAULT)
    return images.put_into(config), images


def inputs_for(
    model: nn.Module, images: Preprocessing, input_size: InputSize | None = None
) -> tuple[tuple[Tensor, ...], Preprocessing]:
    """Example inputs of `input_size`, else of the size that `images` knows, else the usual ones; `images` with it."""
    source = "default" if input_size is None else "option"
    if input_size is None and images.size is not None and dimensions(model) == 2:
        source, input_size = images.sources["size"], (channels_of(model), *images.size)
    inputs = default_example_inputs(model, input_size)
    shape = tuple(inputs[0].shape[2:])
    return inputs, images.sized(shape, source) if len(shape) == 2 else images


def with_preprocessing(
    model: nn.Module, inputs: tuple[Any, ...], config: Config, images: Preprocessing, *, inplace: bool = False
) -> nn.Module:
    """`binarize_model` with `images` in the report, if it is images that `model` takes.

    Args:
        config, images: from `settle_preprocessing`.
    """
    module = binarize_model(model, inputs, config, inplace=inplace)
    shape = tuple(inputs[0].shape) if len(inputs) == 1 and isinstance(inputs[0], Tensor) else ()
    if len(shape) == 4:
        images = images if images.size == shape[2:] else images.sized(shape[2:], "example inputs")
        report_of(module).results["preprocessing"] = images.to_dict()
    return module


def distill(
    teacher: nn.Module,
    train_set: Any,
    val_set: Any,
    config: Config,
    images: Preprocessing,
    run: Path,
    *,
    input_size: InputSize | None = None,
    progress: Listener = silent,
) -> nn.Module:
    """The middle of `convert`: adapt the float model if the configuration says so, binarize it, fine-tune.

    Args:
        teacher: the float model; trained in place if `training.float_epochs` is not 0.
        train_set, val_set: data sets of `binarize.training.data`; `val_set` may be None.
        config, images: from `settle_preprocessing`.
        run: folder for checkpoints and the history.
        input_size: (C, H, W); by default see `binarize.training.data.image_size`.
    """
    from binarize.training import check_data
    from binarize.training.data import image_size

    size, images = image_size(train_set, channels_of(teacher), images, input_size)
    check_data(train_set, val_set, config, size)
    for line in images.with_warning().lines():
        progress(ProgressEvent(line, 0, 0, milestone=True))
    inputs = default_example_inputs(teacher, size)
    results = _adapt(teacher, train_set, val_set, config, inputs, run, progress)
    module = with_preprocessing(teacher, inputs, config, images)
    report = report_of(module)
    report.results.update(results)
    finetune(module, teacher, train_set, val_data=val_set, checkpoint=run / "binary.ckpt", progress=progress)
    _record_run(run, config)
    write_text(run / "history.json", json.dumps(report.results["training"]["history"], indent=1))
    return module


def _images_of(report: Report, config: Config | None) -> tuple[Config, Preprocessing]:
    """The configuration to fine-tune with, and how images are seen: as `apply` settled it, unless `config` says it."""
    planned = Config().updated(report.config)
    recorded = report.results.get("preprocessing")
    known = Preprocessing.from_dict(recorded) if recorded else Preprocessing.configured(planned)
    if config is None:
        known = known.over(DEFAULT)
        return known.put_into(planned), known
    return settle_preprocessing(config, known)


def as_inputs(example_inputs: Any) -> tuple[Any, ...] | None:
    """`example_inputs` as a tuple; a batch of one is doubled, because a traced batch of one would stay one."""
    if example_inputs is None:
        return None
    if not isinstance(example_inputs, Tensor | tuple | list):
        raise UsageError(
            f"example_inputs is a {type(example_inputs).__name__}",
            hint="give a tensor, or a tuple of what the model takes",
        )
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if any(type(value).__module__ == "numpy" for value in tree_leaves(inputs)):
        raise UsageError("example_inputs holds an array of numpy", hint="give tensors: torch.from_numpy(array)")
    if any(isinstance(value, Tensor) and value.dim() and not len(value) for value in inputs):
        raise UsageError("example_inputs holds an empty batch", hint="give two images, or what the model takes of such")
    if inputs and all(isinstance(value, int) for value in inputs):
        raise UsageError(
            f"example_inputs {inputs} holds no tensor", hint=f"if it is a shape, give torch.randn{(2, *inputs)}"
        )
    return tuple(torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() and x.shape[0] == 1 else x for x in inputs)


def _adapt(
    teacher: nn.Module,
    train_set: Any,
    val_set: Any,
    config: Config,
    inputs: tuple[Tensor, ...],
    run: Path,
    progress: Listener,
) -> dict[str, Any]:
    """Adapt the teacher to the data if the configuration says so; its accuracies before and after."""
    from binarize.training import adapt_float
    from binarize.training.finetune import float_accuracy

    size: Any = tuple(inputs[0].shape[1:])
    results: dict[str, Any] = {}
    if val_set is not None:
        results["float_top1"] = float_accuracy(teacher, val_set, config, size, progress)
    if config.training.float_epochs > 0:
        checkpoint = run / "float.ckpt"
        adapted = adapt_float(
            teacher,
            train_set,
            config,
            input_size=size,
            val_set=val_set,
            checkpoint=checkpoint,
            progress=progress,
        )
        results["float_adaptation"] = {**adapted.results, "history": adapted.history}
        if val_set is not None:
            results["float_top1_before_adaptation"] = results["float_top1"]
            results["float_top1"] = float_accuracy(teacher, val_set, config, size, progress)
    return results


def _source(loaded: Loaded) -> dict[str, Any]:
    """Where the float model came from; the file's name only, because the record travels with the model."""
    facts = {name: getattr(loaded, name) for name in ("kind", "arch", "arch_how", "num_classes")}
    return {"file": Path(loaded.source).name, **facts, "notes": list(loaded.notes)}


def _dataset(data: Any, split: str) -> Any:
    """`data` opened if it is a path, its `split` if it has one."""
    from binarize.training.data import available_splits, open_dataset

    if data is None:
        return None
    if not isinstance(data, str | Path):
        if lacks := [name for name in ("classes", "labels", "image") if not hasattr(data, name)]:
            raise UsageError(
                f"a {type(data).__name__} is no labelled set of images (it has no {', '.join(lacks)})",
                hint="give a folder or parquet file, or an object like those in binarize.training.data",
            )
        return data
    return open_dataset(data, split=split if split in available_splits(data) else None)


def some_images(data: Any, module: nn.Module, count: int = INT8_IMAGES) -> Tensor:
    """At most `count` images of `data`, spread evenly over it, as `module` takes them in evaluation."""
    from binarize.training.finetune import Feed

    size: Any = tuple(module.example_shapes[0][1:])  # type: ignore[index]
    return Feed(_dataset(data, "train"), size, Config().updated(report_of(module).config)).sample(count)


def _int8_ends(
    model: Any, inputs: tuple[Tensor, ...], images: Tensor | None, report: Report, progress: Listener
) -> Any:
    """`model` with its float ends in int8; what that does to its answers goes into the report."""
    from binarize.exporting.quantize import batches_of, float_ends, quantize_ends, top1_agreement
    from binarize.lowering import float_inputs

    names = [item.name for item in model.graph.input]
    if images is not None:
        _check_images(images, inputs[0])
    if images is not None and len(names) > 1:
        raise UnsupportedModelError(
            f"images set the ranges of int8 ends, and this model takes {len(names)} inputs",
            hint="leave out --stem int8",
        )
    size = report.results.get("fixed_batch", 1)
    tensors = float_inputs(inputs if images is None else (images,))
    arrays = [x[: len(x) // size * size].numpy() for x in tensors]
    if not len(arrays[0]):
        raise UsageError(
            f"this model takes {size} images at a time", hint=f"give at least {size} images, best {4 * size}"
        )
    batches = list(batches_of(dict(zip(names, arrays, strict=True)), size))
    quantized = quantize_ends(model, batches[::2], progress)
    report.results["int8"] = {
        "layers": [node.input[1].removesuffix(".weight") for node in float_ends(model)],
        "images": 0 if images is None else len(batches[::2]),
        "top1_agreement": None if images is None else top1_agreement(model, quantized, batches[1::2] or batches),
        "images_compared": 0 if images is None else len(batches[1::2] or batches),
    }
    return quantized


def _check_guess(size: tuple[int, ...], train_set: Any, known: Preprocessing) -> None:
    """Refuse to enlarge small images, from which the model has learned, to the size that `apply` had to guess."""
    from binarize.training.data import image_size

    own, _ = image_size(train_set, size[0], known)
    if own != size:
        raise UsageError(
            f"the images are {own[1]} x {own[2]}, and apply, without example inputs, took the model's for "
            f"{size[1]} x {size[2]}",
            hint=f"apply(model, torch.randn{(2, *own)}), or input_size={size} here, to enlarge them",
        )


def _check_runs(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raise UsageError if `module` itself does not take `inputs`."""
    try:
        evaluate(module, inputs)
    except Exception as error:  # whatever the model's code raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            f"the model does not run on example_inputs: {reason}", hint="leave them out, or give what the model takes"
        ) from error


def _check_images(images: object, like: Any) -> None:
    """Raise UsageError if `images` are none that a model takes which takes `like`."""
    if not isinstance(images, Tensor):
        raise UsageError(f"images is a {type(images).__name__}", hint="give a tensor [N, C, H, W], normalised")
    if not images.is_floating_point():
        raise UsageError(f"images is {images.dtype}", hint="give them normalised, as for training")
    if isinstance(like, Tensor) and images.shape[1:] != like.shape[1:]:
        wanted = ", ".join(map(str, like.shape[1:]))
        raise UsageError(f"images is {list(images.shape)}, and the file takes [N, {wanted}]", hint="give such images")


def _inputs_like(module: nn.Module) -> tuple[Any, ...]:
    """Random inputs of the shapes that `apply` saw; what was no float tensor is what it saw."""
    like = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    shapes: Any = module.example_shapes
    values: Any = module.example_values
    structure: Any = module.example_structure
    return example_like(shapes, values, structure, lambda shape: torch.randn(shape, generator=generator).to(like.dtype))


@contextlib.contextmanager
def run_folder(out: str | Path, config: Config, restart: bool = False) -> Iterator[Path]:
    """The folder `<out>.run` beside an output: configuration and versions now, checkpoints and results later.

    The ending of a file is left out of its name.

    A block that fails before there is anything else in a new folder leaves none.
    """
    out = Path(out)
    run = out.with_name((out.stem if out.suffix in _FILES else out.name) + ".run")
    new = not run.exists()
    try:
        run.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the run folder: {error.strerror}", layer=str(run)) from error
    if restart:
        for checkpoint in run.glob("*.ckpt"):
            checkpoint.unlink()
    try:
        if not any(run.glob("*.ckpt")):  # else it is the configuration of the run to go on with, or to be refused
            _record_run(run, config)
        yield run
    except BaseException:
        if new and {file.name for file in run.iterdir()} <= set(_RECORD):
            shutil.rmtree(run, ignore_errors=True)
        raise


_FILES = (".onnx", ".pt", ".pth", ".bin")
"""Endings that are no part of an output's name; `detector-1.5` and `detector-1.6` are two."""
_RECORD = ("config.toml", "environment.json")


def _record_run(run: Path, config: Config) -> None:
    for name, text in zip(_RECORD, (config.to_toml(), json.dumps(versions(), indent=1)), strict=True):
        write_text(run / name, text)
