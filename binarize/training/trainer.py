"""The loop: stages over batches, on HF Accelerate, resumable at any step."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from binarize.config import StageConfig, TrainingConfig
from binarize.errors import BinarizeError, EnvironmentProblem
from binarize.nn import BinaryConv
from binarize.progress import Listener, ProgressEvent, silent
from binarize.training.answers import answering, attention_places
from binarize.training.checkpoint import load_checkpoint, save_checkpoint
from binarize.training.data.batches import generator_for
from binarize.training.interrupts import Interrupt, deferred_interrupts
from binarize.training.losses import Answer
from binarize.training.search import Search, make_search, survives
from binarize.training.stages import Stage, set_stage_bits

COMPILE_AFTER_IMAGES = 60_000
"""`compile = "auto"`: a run over more images than this repays the minute that compiling takes on a small CPU."""

BatchSource = Callable[[int, int], Iterator[tuple[Tensor, Tensor]]]
"""`(epoch, first batch) -> batches of (images, labels)`, the same for the same arguments."""


class TrainingDiverged(BinarizeError):
    """The loss became NaN or infinite (exit code 6)."""

    exit_code = 6


@dataclass
class Clock:
    """Where a run is: what a checkpoint must remember beside tensors."""

    stage: int = 0
    step: int = 0
    """Steps done in the current stage."""
    total_steps: int = 0
    """Steps done in all stages: the data's position."""
    adopted: int = 0
    """Changes that a stage's search proposed and the loss confirmed."""
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Lesson:
    """A stage being run."""

    stage: Stage
    model: Any
    """The module as the step calls it: prepared, perhaps compiled."""
    optimizer: Any
    student: Callable[[Tensor], Answer]
    teacher: Callable[[Tensor], Answer] | None
    search: Search | None


class Trainer:
    """Runs `stages` on `module`.

    Args:
        module: trained in place.
        stages: see `binarize.training.stages`.
        batches: training batches of an epoch from a given one on.
        steps_per_epoch: how many of them an epoch has.
        config: batch size, compilation, checkpoint interval.
        seed: of the searches' proposals.
        teacher: the float model, if a stage distills from it.
        evaluate: called at each epoch's end; its figures go into the history.
        checkpoint: file to resume from and to write to; None keeps everything in memory.
        fingerprint: identifies model, data and configuration; a checkpoint with another one is refused.
        progress: told about every few steps and each epoch.
    """

    def __init__(
        self,
        module: nn.Module,
        stages: list[Stage],
        batches: BatchSource,
        steps_per_epoch: int,
        config: TrainingConfig,
        *,
        seed: int = 0,
        teacher: nn.Module | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        checkpoint: Path | None = None,
        fingerprint: str = "",
        progress: Listener = silent,
    ) -> None:
        self.module, self.stages, self.batches, self.steps_per_epoch = (
            module,
            stages,
            batches,
            steps_per_epoch,
        )
        self.config, self.evaluate, self.checkpoint, self.fingerprint = (
            config,
            evaluate,
            checkpoint,
            fingerprint,
        )
        self.seed, self.progress = seed, progress
        self.accelerator = Accelerator()
        self.device = self.accelerator.device
        place(module, self.device, memory_format)
        self.teacher = teacher
        if teacher is not None:
            place(teacher, self.device, memory_format).eval()
        self.previous: nn.Module | None = None
        self.converted: dict[str, Tensor] = {}
        self.clock, self.interrupt, self.meter = Clock(), Interrupt(), Meter(module)
        self.whole = True  # whether the state is one between two steps
        self.steps = [max(1, round(stage.epochs * steps_per_epoch)) for stage in stages]

    def run(self) -> list[dict[str, Any]]:
        """Train to the end; returns the history, a dict per epoch.

        On Ctrl-C or SIGTERM the step is finished and a checkpoint written before KeyboardInterrupt propagates.

        Raises:
            TrainingDiverged: with the step and the loss.
        """
        keep_freed_memory()
        self.converted = {name: value.clone() for name, value in self.module.state_dict().items()}
        state = load_checkpoint(self.checkpoint, self.fingerprint) if self.checkpoint else None
        if state is not None:
            self.module.load_state_dict(state["module"])
            self.clock = Clock(**state["clock"])
            if state["previous"] is not None:
                self.previous = self._snapshot(self.stages[self.clock.stage - 1], state["previous"])
        with deferred_interrupts() as self.interrupt:
            while self.clock.stage < len(self.stages):
                self._run_stage(self.stages[self.clock.stage], state)
                self.clock.stage, self.clock.step, state = self.clock.stage + 1, 0, None
        self._save(None)
        return self.clock.history

    def _run_stage(self, stage: Stage, state: dict[str, Any] | None) -> None:
        if stage.plan.start == "converted" and self.clock.step == 0:
            self.module.load_state_dict(self.converted)
        set_stage_bits(self.module, stage.plan)
        inner = stage.optimizer(self.module)
        for group in inner.param_groups:
            group["peak"] = group["lr"]  # travels with the checkpoint: the mean |weight| it came from has moved on
        if state is not None and state["optimizer"] is not None:
            inner.load_state_dict(state["optimizer"])
        self.meter = Meter(self.module, state.get("meter") if state is not None else None)
        with self._saving_when_interrupted(inner), self._lesson(stage, inner) as lesson:
            self._steps(lesson)
        self.previous = self._snapshot(stage, self.module.state_dict()) if self._next_teacher() == "previous" else None
        set_stage_bits(self.module, StageConfig())

    @contextlib.contextmanager
    def _lesson(self, stage: Stage, inner: torch.optim.Optimizer) -> Iterator[Lesson]:
        places = attention_places(self.module) if stage.plan.attention > 0 else []
        guide = self.previous if stage.plan.teacher == "previous" and self.previous is not None else self.teacher
        with contextlib.ExitStack() as watched:
            watched.enter_context(keeping_forward(self.module))
            model, optimizer = self.accelerator.prepare(self.module, inner)
            model = torch.compile(model) if self._compiles() else model
            student = watched.enter_context(answering(self.module, places, model))
            teacher = watched.enter_context(answering(guide, places, guide)) if guide is not None else None
            search = make_search(stage.plan.search)
            yield Lesson(stage, model, optimizer, student, teacher if stage.distills else None, search)

    def _next_teacher(self) -> str:
        """Whom the stage after the current one learns from."""
        following = self.stages[self.clock.stage + 1 :]
        return following[0].plan.teacher if following else "float"

    def _snapshot(self, stage: Stage, state: dict[str, Tensor]) -> nn.Module:
        """The module as `stage` left it, frozen."""
        module = copy.deepcopy(self.module)
        module.load_state_dict(state)
        set_stage_bits(module, stage.plan)
        return module.eval().requires_grad_(False)

    def _steps(self, lesson: Lesson) -> None:
        stage, clock, steps = lesson.stage, self.clock, self.steps[self.clock.stage]
        saved = time.monotonic()
        while clock.step < steps:
            epoch, first = divmod(clock.total_steps, self.steps_per_epoch)
            for images, labels in self.batches(epoch, first):
                started = time.monotonic()
                factor = stage.rate(clock.step, steps)
                for group in lesson.optimizer.param_groups:
                    group["lr"] = group["peak"] * factor
                self.whole = False
                self.meter.add(*self._step(lesson, images, labels))
                clock.step += 1
                clock.total_steps += 1
                self.whole = True
                clock.seconds += time.monotonic() - started
                self.meter.seconds += time.monotonic() - started
                if clock.step == steps or clock.total_steps % self.steps_per_epoch == 0:
                    break  # the epoch enters the history before anything can stop
                self.interrupt.check()
                self._report(stage)
                saved = self._save_if_due(lesson.optimizer, saved)
            self._finish_epoch(stage)
            saved = self._save_if_due(lesson.optimizer, saved)
            self.interrupt.check()

    def _step(self, lesson: Lesson, images: Tensor, labels: Tensor) -> tuple[float, int, int]:
        """One optimizer step on this process's images; returns the loss, how many were right, and how many."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        images = images[rank::world].to(self.device, non_blocking=True)
        labels = labels[rank::world].to(self.device, non_blocking=True)
        lesson.model.train()
        with self._arithmetic():
            with torch.no_grad():
                guidance = None if lesson.teacher is None else lesson.teacher(images)
            student = lesson.student(images)
        loss = lesson.stage.objective(student, guidance, labels)
        value = float(loss.detach())
        if value != value or value in (float("inf"), float("-inf")):
            raise TrainingDiverged(
                f"the loss is {value} at step {self.clock.step} of stage {lesson.stage.name}",
                hint="lower the rates: --set training.learning_rate=... --set training.weight_step=...",
            )
        lesson.optimizer.zero_grad()
        self.accelerator.backward(loss)
        lesson.optimizer.step()
        if lesson.search is not None and (self.clock.step + 1) % lesson.stage.plan.search_every == 0:
            self._search(lesson, lesson.search, images, labels, guidance)
        return value, int((student.logits.detach().argmax(1) == labels).sum()), len(labels)

    def _arithmetic(self) -> Any:
        """The precision of forward passes; what the user told Accelerate goes on top."""
        chosen = self.config.precision
        lowered = chosen == "bfloat16" or (chosen == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, torch.bfloat16, enabled=lowered)

    def _search(self, lesson: Lesson, search: Search, images: Tensor, labels: Tensor, guidance: Answer | None) -> None:
        """Let the stage's search propose a change; every process sees the mean loss and so decides alike."""

        def loss() -> float:
            with self._arithmetic():
                student = lesson.student(images)
            value = lesson.stage.objective(student, guidance, labels)
            return float(self.accelerator.reduce(value, "mean"))

        generator = generator_for(self.seed, self.clock.total_steps)
        self.clock.adopted += survives(search, self.module, loss, generator)

    def _compiles(self) -> bool:
        """Whether to `torch.compile`: worth it, and on a CPU possible only with a C++ compiler."""
        compiler = os.environ.get("CXX", "g++")
        possible = self.device.type != "cpu" or shutil.which(compiler) is not None
        if self.config.compile == "on" and not possible:
            raise EnvironmentProblem(
                f"training.compile = 'on' needs the C++ compiler {compiler!r}, which is not there",
                hint="install one, or --set training.compile=off (slower training)",
            )
        if self.config.compile == "auto":
            return possible and sum(self.steps) * self.config.batch_size > COMPILE_AFTER_IMAGES
        return self.config.compile == "on"

    def _report(self, stage: Stage) -> None:
        meter = self.meter
        all_steps = sum(self.steps)
        left = (all_steps - self.clock.total_steps) * meter.seconds / max(meter.steps, 1)
        fields = {**meter.fields(), "left": _minutes(left)}
        self.progress(ProgressEvent(f"training ({stage.name})", self.clock.total_steps, all_steps, fields))

    def _finish_epoch(self, stage: Stage) -> None:
        meter, self.meter = self.meter, Meter(self.module)
        entry: dict[str, Any] = {
            "stage": stage.name,
            "epoch": round(self.clock.total_steps / self.steps_per_epoch, 3),
            "step": self.clock.total_steps,
            "seconds": round(self.clock.seconds, 2),
            **meter.figures(),
        }
        if stage.plan.search != "none":
            entry["adopted"] = self.clock.adopted
        self.clock.history.append(entry)  # first: measuring takes long, and may be interrupted
        if self.evaluate is not None:
            entry |= {f"val_{key}": value for key, value in self.evaluate(self.module).items() if key != "images"}
        fields = meter.fields()
        if "val_top1" in entry:
            fields["val top-1"] = f"{entry['val_top1']:.2%}"
        name = f"training ({stage.name})"
        self.progress(ProgressEvent(name, self.clock.total_steps, sum(self.steps), fields, milestone=True))

    @contextlib.contextmanager
    def _saving_when_interrupted(self, optimizer: Any) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if self.checkpoint and self.clock.total_steps and self.whole:
                self._save(optimizer)
            raise

    def _save_if_due(self, optimizer: Any, saved: float) -> float:
        """Save if the last time, `saved`, is long enough ago; when it was saved last."""
        if self.checkpoint is None or time.monotonic() - saved <= self.config.checkpoint_minutes * 60:
            return saved
        self._save(optimizer)
        return time.monotonic()

    def _save(self, optimizer: Any) -> None:
        if self.checkpoint is None or not self.accelerator.is_main_process:
            return
        state = {
            "fingerprint": self.fingerprint,
            "module": self.module.state_dict(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "clock": vars(self.clock),
            "meter": self.meter.state(),
            "previous": None if self.previous is None else self.previous.state_dict(),
        }
        save_checkpoint(self.checkpoint, state)


@contextlib.contextmanager
def keeping_forward(module: nn.Module) -> Iterator[None]:
    """Takes off what Accelerate puts around the `forward` of a model that it is told to run in another precision.

    Left there it would go into accuracies, exported files and the next stage.
    """
    names = ("forward", "_original_forward")
    before = {name: vars(module)[name] for name in names if name in vars(module)}
    try:
        yield
    finally:
        for name in names:
            vars(module).pop(name, None)
        vars(module).update(before)


class Meter:
    """Running figures of one epoch.

    Args:
        module: whose binary weights it watches.
        state: what `state` gave for the first part of the epoch, if a run was resumed in its middle.
    """

    def __init__(self, module: nn.Module, state: dict[str, Any] | None = None) -> None:
        self._convs = [m for m in module.modules() if isinstance(m, BinaryConv)]
        self.loss, self.right, self.images, self.steps, self.seconds = 0.0, 0, 0, 0, 0.0
        self.before = [_signs(conv) for conv in self._convs]
        if state is not None:
            self.loss, self.right, self.images, self.steps, self.seconds = state["sums"]
            self.before = [old.to(new.device) for old, new in zip(state["before"], self.before, strict=True)]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"sums": [self.loss, self.right, self.images, self.steps, self.seconds], "before": self.before}

    def add(self, loss: float, right: int, images: int) -> None:
        self.loss += loss * images
        self.right += right
        self.images += images
        self.steps += 1

    def figures(self) -> dict[str, float]:
        """Mean loss, top-1 on the training images, images per second and the share of flipped weight signs."""
        images = max(self.images, 1)
        return {
            "loss": round(self.loss / images, 5),
            "train_top1": round(self.right / images, 5),
            "images_per_second": round(self.images / max(self.seconds, 1e-9), 1),
            "flips": round(self._flips(), 6),
        }

    def fields(self) -> dict[str, str]:
        images = max(self.images, 1)
        return {
            "loss": f"{self.loss / images:.3f}",
            "top-1": f"{self.right / images:.1%}",
            "img/s": f"{self.images / max(self.seconds, 1e-9):.0f}",
        }

    def _flips(self) -> float:
        flipped = sum(int((_signs(c) != old).sum()) for c, old in zip(self._convs, self.before, strict=True))
        return flipped / max(sum(old.numel() for old in self.before), 1)


def _signs(conv: BinaryConv) -> Tensor:
    """Of the weights as they are binarized, which for some recipes are centred ones."""
    return conv.binarize_weight.latent(conv.weight.detach()) > 0


def place(module: nn.Module, device: torch.device, memory_format: torch.memory_format) -> nn.Module:
    """Move `module` to `device`; CPU and GPU convolutions prefer channels innermost."""
    return module.to(device=device, memory_format=memory_format)  # type: ignore[call-overload, no-any-return]


def keep_freed_memory() -> None:
    """Ask glibc to reuse freed blocks instead of handing them back to the kernel after every step.

    Training allocates the same few hundred MB over and over; page faults cost 20-30 % of a CPU step otherwise.
    Other C libraries have no `mallopt`; then this does nothing.
    """
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(mmap_threshold, 2**31 - 1):  # before glibc 2.35 the limit is half a heap
            mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**31 - 1)


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
