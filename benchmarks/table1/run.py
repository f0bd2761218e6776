"""Run one cell: train, evaluate, export, record. A killed cell goes on from its checkpoint."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import binarize
from benchmarks.records import revision
from benchmarks.table1.nets import NETS
from benchmarks.table1.plan import FLOAT, Cell
from benchmarks.table1.results import Row
from binarize.bench.machine import cpu_name
from binarize.errors import BinarizeError, UsageError
from binarize.files import atomic_output
from binarize.progress import Listener
from binarize.surgery import report_of
from binarize.training import adapt_float
from binarize.training.data import ImageDataset
from binarize.training.finetune import float_accuracy
from binarize.training.trainer import TrainingDiverged


@dataclass(frozen=True)
class Bench:
    """What all cells of a run share.

    Attributes:
        train_set, val_set: images.
        size: pixels per side that nets see.
        work: folder of checkpoints and exported files.
        name: of the data, for the record.
        export: whether each trained net is also exported, proved and run by ONNX Runtime.
    """

    train_set: ImageDataset
    val_set: ImageDataset
    size: int
    work: Path
    name: str
    export: bool = True

    @property
    def facts(self) -> dict[str, int | str]:
        """What of the data identifies a cell."""
        return {
            "data": self.name,
            "train_images": len(self.train_set),
            "val_images": len(self.val_set),
            "classes": len(self.train_set.classes),
            "size": self.size,
        }

    def float_file(self, cell: Cell) -> Path:
        return self.work / f"{cell.float_cell.name}-{cell.float_cell.key(self.facts)}.float.pt"


def run_cell(cell: Cell, bench: Bench, progress: Listener) -> Row:
    """Train `cell`; its float model must have been trained before.

    A loss that is no longer finite is a result, not an error.
    """
    run = _train_float if cell.arm == FLOAT else _train_binary
    try:
        figures = run(cell, bench, progress)
    except TrainingDiverged as error:
        figures = {"top1": "", "note": f"diverged: {error}"}
    config = cell.config.training
    return Row(
        key=cell.key(bench.facts),
        net=cell.net,
        recipe=cell.arm,
        seed=cell.seed,
        top1=figures["top1"],
        float_top1=figures.get("float_top1", ""),
        note=figures.get("note", ""),
        epochs=config.float_epochs if cell.arm == FLOAT else config.epochs,
        seconds=figures.get("seconds", 0.0),
        settings=" ".join(cell.settings),
        changes=" ".join(cell.changes),
        device=_device(),
        torch=torch.__version__,
        commit=revision(),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        **bench.facts,  # type: ignore[arg-type]
    )


def _train_float(cell: Cell, bench: Bench, progress: Listener) -> dict[str, Any]:
    torch.manual_seed(cell.seed)
    net = NETS[cell.net](len(bench.train_set.classes))
    file = bench.float_file(cell)
    result = adapt_float(
        net,
        bench.train_set,
        cell.config,
        input_size=(3, bench.size, bench.size),
        val_set=bench.val_set,
        checkpoint=file.with_suffix(".ckpt"),
        progress=progress,
    )
    top1 = result.history[-1].get("val_top1")  # none where the run was interrupted as it measured
    if top1 is None:
        top1 = float_accuracy(net, bench.val_set, cell.config, (3, bench.size, bench.size), progress)
    with atomic_output(file) as temporary:
        torch.save({"state": net.cpu().state_dict(), "top1": top1}, temporary)
    return {"top1": _percent(top1), "seconds": result.results["train_seconds"]}


def _train_binary(cell: Cell, bench: Bench, progress: Listener) -> dict[str, Any]:
    teacher, float_top1 = _load_float(cell, bench)
    example = torch.zeros(2, 3, bench.size, bench.size)
    module = binarize.apply(teacher, example, config=cell.config)
    key = cell.key(bench.facts)
    checkpoint = bench.work / f"{cell.name}-{key}.ckpt"
    binarize.finetune(
        module, teacher, bench.train_set, val_data=bench.val_set, checkpoint=checkpoint, progress=progress
    )
    training = report_of(module).results["training"]
    figures = {
        "top1": _percent(training["val_top1"]),
        "float_top1": _percent(float_top1),
        "seconds": training["train_seconds"],
    }
    if bench.export:
        figures["note"] = _export(module.cpu(), bench, bench.work / f"{cell.name}-{key}.onnx")
    return figures


def _load_float(cell: Cell, bench: Bench) -> tuple[nn.Module, float]:
    file = bench.float_file(cell)
    if not file.exists():
        raise UsageError(
            "the weights of the float net are gone", layer=str(file), hint="the same command trains it again"
        )
    saved = torch.load(file, weights_only=True)
    net = NETS[cell.net](len(bench.train_set.classes))
    net.load_state_dict(saved["state"])
    return net.eval(), saved["top1"]


def _export(module: Any, bench: Bench, path: Path) -> str:
    """Export with the proof of equality; what came of it, since a trained net is a result also without a file."""
    try:
        report = binarize.export(module, path, _images(bench, module))
    except BinarizeError as error:
        return f"not exported: {error}"
    found = report.results["verification"]
    return f"exported, {path.stat().st_size} bytes, {found['nodes']} nodes proved"


def _images(bench: Bench, module: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, bench.size, bench.size, generator=generator)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _device() -> str:
    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "true":
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {torch.get_num_threads()} threads"
