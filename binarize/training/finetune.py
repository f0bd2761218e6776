"""Fine-tuning as a user sees it: calibrate, train in stages, re-estimate batch norms, keep what is better."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from binarize.config import Config
from binarize.errors import UnsupportedModelError, UsageError
from binarize.nn import BinaryConv
from binarize.preprocessing import AUTO, DEFAULT, SETTINGS, Preprocessing
from binarize.progress import Listener, silent
from binarize.training.calibration import calibrate, reestimate_batch_norm
from binarize.training.data import ImageDataset, Subset, check_classes, make_loader, split_train_val
from binarize.training.evaluate import evaluate, logits_of
from binarize.training.stages import Stage, binary_stages, float_stages
from binarize.training.trainer import Trainer, TrainingDiverged

FLOAT_SETTINGS = [
    "float_epochs",
    "float_learning_rate",
    "batch_size",
    "warmup",
    "float_weight_decay",
    "precision",
    "augment",
    *SETTINGS,
    "holdout",
    "bn_images",
]
"""Settings that the float model's adaptation depends on."""

LATER_SETTINGS = {"crop_pct": DEFAULT.crop_pct, "interpolation": DEFAULT.interpolation}
"""Settings that earlier versions did not have, at what they did: so they are nothing that tells runs apart."""

HARMLESS_SETTINGS = ("workers", "compile", "checkpoint_minutes")
"""Settings that change no result."""


@dataclass
class TrainingResult:
    """What a run achieved.

    Attributes:
        history: a dict per epoch: stage, loss, accuracies, images per second, share of flipped signs.
        results: accuracies (0 to 1), seconds, what the BN re-estimation brought.
    """

    history: list[dict[str, Any]]
    results: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Feed:
    """Batches of one data set for one model: size, normalisation and layout settled."""

    dataset: ImageDataset
    input_size: tuple[int, int, int]
    config: Config
    memory_format: torch.memory_format = torch.contiguous_format
    """Of the images."""

    def train_batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._loader(train=True, epoch=epoch, first=first)

    def eval_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._loader(train=False, epoch=0, first=0)

    def _loader(self, *, train: bool, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        training = self.config.training
        known: Any = Preprocessing.of(self.config)  # nothing is None but the size
        channels = self.input_size[0]
        loader = make_loader(
            self.dataset,
            input_size=self.input_size,
            batch_size=training.batch_size if train else max(training.batch_size, 128),
            train=train,
            seed=self.config.seed,
            epoch=epoch,
            mean=fit_channels(known.mean, channels, "training.mean"),
            std=fit_channels(known.std, channels, "training.std"),
            workers=training.workers,
            start_batch=first,
            augment=training.augment,
            crop_pct=known.crop_pct,
            interpolation=known.interpolation,
        )
        for images, labels in loader:
            yield images.contiguous(memory_format=self.memory_format), labels

    def images(self, count: int) -> Iterator[Tensor]:
        """About `count` augmented training images, in batches (always the same ones)."""
        batches = -(-count // self.config.training.batch_size)
        return (images for images, _ in itertools.islice(self.train_batches(0, 0), batches))

    def sample(self, count: int) -> Tensor:
        """At most `count` images spread evenly over the data set, as evaluation sees them."""
        rows = torch.linspace(0, len(self.dataset) - 1, min(count, len(self.dataset))).round().long()
        spread = replace(self, dataset=Subset(self.dataset, rows))
        return torch.cat([images for images, _ in spread.eval_batches()])

    @property
    def steps_per_epoch(self) -> int:
        return len(self.dataset) // self.config.training.batch_size


def fit_channels(values: tuple[float, ...], channels: int, name: str) -> tuple[float, ...]:
    """`values` for `channels` channels: one value serves all; three serve one channel by their mean."""
    if len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    if channels == 1:
        return (sum(values) / len(values),)
    raise UsageError(
        f"{name} has {len(values)} values for {channels} channels",
        hint=f"give one value, or {channels}, to --set {name}",
    )


def finetune(
    module: nn.Module,
    teacher: nn.Module,
    train_set: ImageDataset,
    config: Config,
    *,
    input_size: tuple[int, int, int],
    val_set: ImageDataset | None = None,
    checkpoint: Path | None = None,
    progress: Listener = silent,
) -> TrainingResult:
    """Train a freshly binarized `module` in place, with its float original as `teacher`.

    Args:
        module: from `binarize.apply`.
        teacher: the float model; left as it is.
        train_set, val_set: labelled images; accuracy on `val_set` is reported each epoch.
        config: seed and `training` are used.
        input_size: (C, H, W) of the model's input.
        checkpoint: file to resume from (same configuration, data and model) and to write to.

    Raises:
        UsageError: data and model do not fit, or the checkpoint belongs to another run.
        TrainingDiverged: the loss is no longer finite.
    """
    _check_trainable(m.weight for m in module.modules() if isinstance(m, BinaryConv))
    torch.manual_seed(config.seed)
    holdout, feed = _prepare(teacher, train_set, val_set, config, input_size)
    stages, guide = binary_stages(config.training), _frozen(teacher)
    fingerprint = _fingerprint(feed, module, guide)
    trainer = _trainer(module, stages, feed, val_set, checkpoint, fingerprint, progress, teacher=guide)
    images = list(feed.images(config.training.calibration_images))
    calibrate(module, guide, images, threshold=config.conv.threshold)
    untrained = _scores(module, feed, val_set, progress)
    history = trainer.run()
    results = _finish_batch_norm(module, feed, replace(feed, dataset=holdout)) if holdout is not None else {}
    if val_set is not None:
        results["untrained_top1"] = untrained["top1"]
        results["val_top1"] = _scores(module, feed, val_set, progress)["top1"]
    results["train_seconds"] = round(trainer.clock.seconds, 1)
    module.eval()
    return TrainingResult(history, results)


def adapt_float(
    model: nn.Module,
    train_set: ImageDataset,
    config: Config,
    *,
    input_size: tuple[int, int, int],
    val_set: ImageDataset | None = None,
    checkpoint: Path | None = None,
    progress: Listener = silent,
) -> TrainingResult:
    """Train the float `model` in place for `training.float_epochs`, so that it knows the data it will teach.

    Raises:
        UsageError: data and model do not fit, or the checkpoint belongs to another run.
        TrainingDiverged: the loss is no longer finite.
    """
    _check_trainable(model.parameters())
    torch.manual_seed(config.seed)
    _, feed = _prepare(model, train_set, val_set, config, input_size)
    fingerprint = _fingerprint(feed, model)
    trainer = _trainer(model, float_stages(config.training), feed, val_set, checkpoint, fingerprint, progress)
    try:
        history = trainer.run()
    except TrainingDiverged as error:
        error.hint = "lower the rate: --set training.float_learning_rate=..."  # the others are of binary nets
        raise
    model.eval()
    return TrainingResult(history, {"train_seconds": round(trainer.clock.seconds, 1)})


def _check_trainable(weights: Iterable[Tensor]) -> None:
    """Refuse `weights` that are all frozen, as a float model's often are, and a binary copy's with them.

    Raises:
        UsageError: training would change none of them.
    """
    if not any([weight.requires_grad for weight in weights] or [True]):
        raise UsageError(
            "the weights are frozen (requires_grad is False), so that training would not change them",
            hint="module.requires_grad_(True) before; to keep a part as it is, freeze that part alone",
        )


def _prepare(
    model: nn.Module,
    train_set: ImageDataset,
    val_set: ImageDataset | None,
    config: Config,
    input_size: tuple[int, int, int],
) -> tuple[ImageDataset | None, Feed]:
    """The held-out part (None if there is none) and the feed of the rest; checks that data and model fit."""
    check_data(train_set, val_set, config, input_size)
    memory_format = _check_fits(model, train_set, input_size)
    if _holds_out(train_set, config):
        rest, holdout = split_train_val(train_set, config.training.holdout, config.seed)
        return holdout, Feed(rest, input_size, config, memory_format)
    return None, Feed(train_set, input_size, config, memory_format)


def _holds_out(train_set: ImageDataset, config: Config) -> bool:
    """Whether some images stay out of training, to choose batch norm statistics by: if they are two of each class."""
    enough = config.training.holdout * len(train_set) >= 2 * len(train_set.classes)
    return enough and config.training.bn_images > 0


def check_data(
    train_set: ImageDataset, val_set: ImageDataset | None, config: Config, input_size: tuple[int, ...]
) -> None:
    """Refuse images that cannot train a net as `config` says, before anything takes time.

    Raises:
        UsageError: there are fewer than a batch, their normalisation has another number of channels, or the two sets
            have other classes.
    """
    training, images = config.training, len(train_set)
    held = 0
    if _holds_out(train_set, config):
        held = sum(round(training.holdout * count) for count in train_set.labels.bincount().tolist())
    if images - held < training.batch_size:
        without = f" without the {held} that are held out (training.holdout)" if held else ""
        raise UsageError(
            f"there are {images - held} training images{without}, fewer than training.batch_size = "
            f"{training.batch_size}",
            layer=train_set.source,
            hint=f"--set training.batch_size={images - held}, or give more images",
        )
    known: Any = Preprocessing.of(config)
    fit_channels(known.mean, input_size[0], "training.mean")
    fit_channels(known.std, input_size[0], "training.std")
    if val_set is not None and list(val_set.classes) != list(train_set.classes):
        raise UsageError(
            f"the validation data's classes {_first(val_set.classes)} are not the training data's "
            f"{_first(train_set.classes)}",
            layer=val_set.source,
            hint="labels count classes in order, so both need the same class folders or names",
        )


@torch.no_grad()
def _check_fits(model: nn.Module, dataset: ImageDataset, input_size: tuple[int, int, int]) -> torch.memory_format:
    """Check that `model` takes images of `input_size` and knows the classes of `dataset`; how it likes its images.

    That is channels innermost, which is faster, unless its code views maps as vectors, which then have no such view.
    """
    probe = _frozen(model)
    images = torch.zeros(2, *input_size, device=next(model.parameters()).device)
    try:
        check_classes(dataset, logits_of(probe(images)).shape[1])
    except (TypeError, RuntimeError) as error:
        size = " x ".join(map(str, input_size))
        raise UnsupportedModelError(
            f"the model does not take one batch of float32 images of {size}: {str(error).splitlines()[0]}",
            hint="--input-size C,H,W changes their size; fine-tuning is for image classifiers, others need a training "
            "loop of your own on binarize.apply(model)",
        ) from error
    try:
        probe.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))  # type: ignore[call-overload]
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


def _trainer(
    module: nn.Module,
    stages: list[Stage],
    feed: Feed,
    val_set: ImageDataset | None,
    checkpoint: Path | None,
    fingerprint: str,
    progress: Listener,
    teacher: nn.Module | None = None,
) -> Trainer:
    def score(trained: nn.Module) -> dict[str, float]:
        return _scores(trained, feed, val_set, silent)

    return Trainer(
        module,
        stages,
        feed.train_batches,
        feed.steps_per_epoch,
        feed.config.training,
        seed=feed.config.seed,
        teacher=teacher,
        memory_format=feed.memory_format,
        evaluate=score if val_set is not None else None,
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        progress=progress,
    )


def _scores(module: nn.Module, feed: Feed, val_set: ImageDataset | None, progress: Listener) -> dict[str, float]:
    """Accuracy and loss on `val_set` with `feed`'s size and normalisation; empty without one."""
    if val_set is None:
        return {}
    return evaluate(module, replace(feed, dataset=val_set).eval_batches(), total=len(val_set), progress=progress)


def _finish_batch_norm(module: nn.Module, feed: Feed, holdout: Feed) -> dict[str, Any]:
    """Re-estimate BN statistics on training images; keep them only if the held-out images' loss says so."""
    before = evaluate(module, holdout.eval_batches())
    old = copy.deepcopy(module.state_dict())
    reestimate_batch_norm(module, feed.images(feed.config.training.bn_images))
    after = evaluate(module, holdout.eval_batches())
    kept = after["loss"] < before["loss"]
    if not kept:
        module.load_state_dict(old)
    figures = {"loss_before": round(before["loss"], 5), "loss_after": round(after["loss"], 5), "kept": kept}
    return {"batch_norm_reestimation": figures}


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")


def _frozen(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode that needs no gradient."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def what_matters(training: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that tell it from others, of all in the table [training]."""
    return {
        key: value
        for key, value in training.items()
        if key not in HARMLESS_SETTINGS and not (key in LATER_SETTINGS and value in (AUTO, LATER_SETTINGS[key]))
    }


def _fingerprint(feed: Feed, module: nn.Module, teacher: nn.Module | None = None) -> str:
    """Identifies a run: what of the configuration matters to it, data, and the weights it starts and learns from.

    Without a teacher the float model is trained, with one the binary one.
    """
    role = "float" if teacher is None else "binary"
    every = what_matters(asdict(Preprocessing.of(feed.config).put_into(feed.config).training))
    training = {key: value for key, value in every.items() if key in FLOAT_SETTINGS or role == "binary"}
    layers = (
        [asdict(feed.config.surgery), asdict(feed.config.conv), asdict(feed.config.link)] if role == "binary" else []
    )
    facts = [role, feed.config.seed, training, layers, feed.input_size, list(feed.dataset.classes)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(feed.dataset.labels.numpy().tobytes())
    digest.update(feed.dataset.image(0).numpy().tobytes())
    for net in (module,) if teacher is None else (module, teacher):
        for name, value in net.state_dict().items():
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def float_accuracy(
    model: nn.Module,
    val_set: ImageDataset,
    config: Config,
    input_size: tuple[int, int, int],
    progress: Listener,
) -> float:
    """Top-1 (0 to 1) of a float model on `val_set`, with `config`'s normalisation."""
    memory_format = _check_fits(model, val_set, input_size)
    return _scores(model, Feed(val_set, input_size, config, memory_format), val_set, progress)["top1"]
