"""One model's way through the pipeline: build, surgery, one training step, export with its proof, a run."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from binarize import api
from binarize.config import Config
from binarize.errors import BinarizeError, UnsupportedModelError, UsageError, VerificationError
from binarize.loading import resolve
from binarize.nn import BinaryConv, Region
from binarize.report import Report
from binarize.runtime import InferenceSession
from binarize.surgery import report_of
from binarize.zoo.entries import Entry
from binarize.zoo.inputs import SMALL_IMAGE, describe, smallest_inputs, training_inputs

STATIONS = ("build", "surgery", "train", "export", "run")
LEARNING_RATE = 1e-2
MAX_NORM = 1.0


@dataclass
class Outcome:
    """How far a model came.

    Attributes:
        spec, name, family: see `Entry`.
        until: the last station it was to reach.
        reached: the last station it passed; `run` means that the file's outputs were seen to be the module's.
        failed_at, reason: the station that stopped it and its error's first sentence; empty if all went well.
        inputs: shapes of what it ran on.
        convs, binarized: counts; `mac_share` is the binary share of the convolutions' multiply-accumulates.
        links, kept: how many binary convs have each form of link, how many float ones each rule.
        untraced: modules whose own code no graph holds.
        float_bytes, file_bytes: of the float32 weights and of the ONNX file, or the folder of parts.
        worst: largest difference of a node as a share of what is allowed.
        seconds: per station.
    """

    spec: str
    name: str
    family: str
    until: str
    reached: str = ""
    failed_at: str = ""
    reason: str = ""
    inputs: str = ""
    convs: int = 0
    binarized: int = 0
    mac_share: float = 0.0
    links: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    untraced: list[str] = field(default_factory=list)
    float_bytes: int = 0
    file_bytes: int = 0
    worst: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`equal` after a full run; else the station that was asked for, or the failure in words."""
        if self.failed_at:
            return f"{self.failed_at}: {self.reason}"
        return "equal" if self.reached == STATIONS[-1] else self.reached

    def passed(self, station: str) -> bool:
        return self.reached != "" and STATIONS.index(station) <= STATIONS.index(self.reached)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def send(
    entry: Entry,
    until: str,
    folder: Path,
    config: Config | None = None,
    enter: Callable[[str], None] = lambda station: None,
) -> Outcome:
    """Send a model through the stations up to `until`; what it becomes is made in `folder` and removed.

    Nothing is raised for a model that fails: the outcome says where and why. `enter` is told each station's name.
    """
    outcome = Outcome(entry.spec, entry.name, entry.family, until)
    journey = _Journey(entry, config or Config(), folder / "model.onnx", outcome)
    for station in STATIONS[: STATIONS.index(until) + 1]:
        enter(station)
        started = time.monotonic()
        try:
            getattr(journey, station)()
            outcome.reached = station
        except Exception as error:
            outcome.failed_at, outcome.reason = station, _reason(error)
            break
        finally:
            outcome.seconds[station] = round(time.monotonic() - started, 2)
    if journey.path.is_dir():
        shutil.rmtree(journey.path)
    journey.path.unlink(missing_ok=True)
    return outcome


def build_small(entry: Entry, *, hollow: bool) -> tuple[nn.Module, tuple[Any, ...]]:
    """An untrained model and the smallest inputs it runs on; both on the meta device if `hollow`, where that works.

    Detectors choose boxes by their scores, which a tensor without values has not: they are built in full.
    """
    architecture = resolve(entry.spec)
    if hollow:
        try:
            model = architecture.outline().to("meta")
            return model, smallest_inputs(model, entry.family)
        except UsageError:
            pass
    model = architecture.build()
    _keep_images_small(model)
    return model, smallest_inputs(model, entry.family)


def _keep_images_small(model: nn.Module) -> None:
    """Let a detector that resizes its images to a range of sizes take small ones as they are."""
    transform = getattr(model, "transform", None)
    if hasattr(transform, "min_size") and not getattr(transform, "fixed_size", None):
        transform.min_size, transform.max_size = (SMALL_IMAGE[0],), SMALL_IMAGE[1]  # type: ignore[union-attr]


class _Journey:
    """What the stations hand on to each other."""

    def __init__(self, entry: Entry, config: Config, path: Path, outcome: Outcome) -> None:
        self.entry, self.config, self.path, self.outcome = entry, config, path, outcome
        self.model = nn.Module()
        self.module = nn.Module()
        self.inputs: tuple[Any, ...] = ()

    def build(self) -> None:
        torch.manual_seed(0)
        hollow = STATIONS.index(self.outcome.until) <= STATIONS.index("surgery")
        self.model, self.inputs = build_small(self.entry, hollow=hollow)
        self.outcome.float_bytes = 4 * sum(p.numel() for p in self.model.parameters())
        self.outcome.inputs = describe(self.inputs)

    def surgery(self) -> None:
        self.module = api.apply(self.model, self.inputs, config=self.config)
        _note_decisions(self.outcome, report_of(self.module))

    def train(self) -> None:
        """One step of SGD; every binary conv must get a gradient, all must be finite, and the loss stay finite."""
        self.module.train()
        optimizer = torch.optim.SGD(self.module.parameters(), lr=LEARNING_RATE)
        self._loss().backward()
        blind = [n for n, m in self.module.named_modules() if isinstance(m, BinaryConv) and m.weight.grad is None]
        if blind:
            raise UnsupportedModelError(f"{len(blind)} binary convs got no gradient: {', '.join(blind[:3])}")
        # Untrained deep nets have gradients of any size; training clips them too.
        if not torch.nn.utils.clip_grad_norm_(self.module.parameters(), MAX_NORM).isfinite():
            raise UnsupportedModelError("a gradient is not finite")
        optimizer.step()
        if not math.isfinite(float(self._loss().detach())):
            raise UnsupportedModelError("the loss is not finite after one step")

    def _loss(self) -> Tensor:
        outputs = tree_leaves(self.module(*training_inputs(self.inputs)))
        floats = [value for value in outputs if isinstance(value, Tensor) and value.requires_grad]
        return torch.stack([value.square().mean() for value in floats]).sum()

    def export(self) -> None:
        """As one file; in parts where nothing holds the whole."""
        try:
            report = api.export(self.module.eval(), self.path, self.inputs)
        except UnsupportedModelError:
            if isinstance(self.module, Region):
                raise
            self.path = self.path.with_suffix("")
            report = api.export(self.module, self.path, self.inputs)
        self.outcome.worst = round(report.results["verification"]["worst"], 4)
        self.outcome.file_bytes = report.results["size"]["file"]

    def run(self) -> None:
        """What was written, in ONNX Runtime; that its nodes are the module's was proved by the export."""
        if self.path.is_dir():
            self._run_parts()
        else:
            self._run_file()

    def _run_parts(self) -> None:
        """What it gives must be of the same kind; how many boxes a detector finds depends on every rounding."""
        with torch.no_grad():
            found, expected = (m(*self.inputs) for m in (api.assemble(self.path, self.model), self.module))
        leaves, structure = tree_flatten(found)
        if structure != tree_flatten(expected)[1]:
            raise VerificationError("the assembled model gives another kind of result")
        if not all(value.isfinite().all() for value in leaves if isinstance(value, Tensor)):
            raise VerificationError("the assembled model gives values that are not finite")

    def _run_file(self) -> None:
        session = InferenceSession(self.path)
        tensors = [value for value in tree_leaves(self.inputs) if isinstance(value, Tensor)]
        names = [value.name for value in session.get_inputs()]
        found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
        with torch.no_grad():
            expected = [value for value in tree_leaves(self.module(*self.inputs)) if isinstance(value, Tensor)]
        if [value.shape for value in found] != [tuple(value.shape) for value in expected]:
            raise VerificationError(f"the file gives outputs of shape {[value.shape for value in found]}")
        if not all(np.isfinite(value).all() for value in found):
            raise VerificationError("the file gives outputs that are not finite")


def _note_decisions(outcome: Outcome, report: Report) -> None:
    outcome.convs, outcome.binarized = len(report.decisions), len(report.binarized)
    outcome.mac_share = round(report.binary_mac_share, 4)
    outcome.links = dict(sorted(Counter(d.link for d in report.binarized).items()))
    outcome.kept = dict(sorted(Counter(d.rule for d in report.kept).items()))
    outcome.untraced = list(report.untraced)


def _reason(error: Exception) -> str:
    """The error in one line: its layer and message, without the hint."""
    if isinstance(error, BinarizeError):
        return " ".join(f"{error.layer + ': ' if error.layer else ''}{error.message}".split())[:300]
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first[:300]}"
