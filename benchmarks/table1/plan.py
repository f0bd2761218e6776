"""Which cells there are, and the settings that all of them share."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from benchmarks.table1.nets import NETS
from binarize import api
from binarize.config import Config
from binarize.errors import UsageError
from binarize.recipes import all_recipes
from binarize.training.finetune import FLOAT_SETTINGS, what_matters

FLOAT = "float"

CHANGES: dict[str, tuple[str, ...]] = {
    "no-link": ("link.kind=none",),
    "identity": ("link.kind=identity",),
    "post-bn": ("link.position=post_bn",),
    "channel-gamma": ("link.gamma=channel",),
    "box-scale": ("conv.box_scale=true",),
    "replace": ("link.residual=replace",),
    "gamma-zero": ("link.gamma_init=0",),
    "gamma-half": ("link.gamma_init=0.5",),
    "centred": ("conv.weights=centred",),
    "zero-threshold": ("conv.threshold=zero",),
    "no-threshold": ("conv.threshold=none",),
    "no-clip": ("conv.clip=1e6",),
    "no-gate": ("conv.gate=false",),
    "random-gate": ("conv.gate_start=random",),
    "1x1": ("conv.activation_bases=1", "conv.weight_bases=1"),
    "one-stage": ("training.stages.tanh.share=0", "training.stages.activations.share=0"),
    "two-stages": ("training.stages.activations.share=25", "training.stages.binary.share=75"),
    "three-stages": ("training.stages.tanh.share=75", "training.stages.activations.share=75"),
}
"""What an arm may change in its recipe; three stages have the published shares."""

LINKS = ("no-link", "identity")
"""Instead of Elastic Links."""
PARTS = ("post-bn", "channel-gamma", "box-scale")
"""Crossed with the links and with each other."""


def product_arms() -> dict[str, tuple[str, ...]]:
    """Each name's changes of every {no link, identity, EL} x {position} x {gamma} x {K}; `el` itself has none.

    Without links there is neither position nor gamma, so these are 18 and not 24.
    """
    subsets = [parts for n in range(len(PARTS) + 1) for parts in itertools.combinations(PARTS, n)]
    every = [("no-link",), ("no-link", "box-scale"), *(("identity", *parts) for parts in subsets), *subsets]
    return {"/".join(filter(None, ("el", "+".join(changes)))): changes for changes in sorted(every, key=len)}


ABLATIONS = (
    *(name for name, changes in product_arms().items() if changes),
    *(f"el/{change}" for change in ("replace", "centred", "zero-threshold", "no-clip", "gamma-zero", "gamma-half")),
    "abcnet/1x1",
    "real-to-bin/one-stage",
    "real-to-bin/no-threshold",
    *(
        f"el-dagger/{change}"
        for change in ("two-stages", "three-stages", "no-link", "identity", "no-gate", "random-gate")
    ),
)
"""Arms that say what parts are worth under equal conditions."""


def split_arm(arm: str) -> tuple[str, tuple[str, ...]]:
    """The recipe and the settings that an arm like `el/identity+box-scale` changes in it.

    Raises:
        UsageError: there is no such recipe or change.
    """
    recipe, _, changes = arm.partition("/")
    _known([recipe], {FLOAT, *all_recipes()}, "recipe")
    changed = _known(changes.split("+") if changes else (), CHANGES, "change of a recipe")
    return recipe, tuple(setting for change in changed for setting in CHANGES[change])


TELLING = ("binarye", "el", "real-to-bin", "el-dagger")
"""Recipes whose comparison says most, run first."""


@dataclass(frozen=True)
class Preset:
    """Nets, recipes and settings of a run, the side of its images, and how many of them train, if not all."""

    nets: tuple[str, ...]
    arms: tuple[str, ...]
    settings: tuple[str, ...]
    size: int
    limit: int | None = None


COMMON = (
    "surgery.keep=['rule:projection']",  # as in the published nets of every row
    "training.float_learning_rate=0.1",
    "training.float_weight_decay=5e-4",
    "training.warmup=0.05",
    "training.holdout=0.01",
    "training.mean=[0.48, 0.45, 0.40]",
    "training.std=[0.27, 0.26, 0.27]",
)
_REST = tuple(name for name in all_recipes() if name not in TELLING)

PRESETS = {
    "gpu": Preset(
        nets=("resnet18", "resnet26", "mobilenetv1", "resnet34", "resnet50"),
        arms=(FLOAT, *TELLING, "el/no-link", *_REST, *(name for name in ABLATIONS if name != "el/no-link")),
        settings=(*COMMON, "training.epochs=40", "training.float_epochs=40", "training.batch_size=128"),
        size=64,
    ),
    "cpu": Preset(
        nets=("resnet20-cifar", "resnet26-half-cifar", "mobilenetv1-half-cifar"),
        arms=(FLOAT, *TELLING, "el/no-link"),
        settings=(
            *COMMON,
            "training.epochs=8",
            "training.float_epochs=8",
            "training.batch_size=64",
            "training.precision=float32",
        ),
        size=32,
        limit=12_800,
    ),
}


_OF_BINARY_NETS = ("conv.", "link.", "training.stages")
"""Settings that a float model does not know."""


@dataclass(frozen=True)
class Cell:
    """One training run.

    Args:
        net: of `NETS`.
        arm: `float`, a recipe, or a recipe with some of `CHANGES`: `el/identity+box-scale`.
        seed: of data order, augmentation and initial weights.
        settings: shared ones, as for `--set`.
    """

    net: str
    arm: str
    seed: int
    settings: tuple[str, ...]

    @property
    def config(self) -> Config:
        if self.arm == FLOAT:  # parts and stages may be those of a recipe that `el` does not have
            return api.resolve_config("el", None, [s for s in self._all if not s.startswith(_OF_BINARY_NETS)])
        return api.resolve_config(split_arm(self.arm)[0], None, [*self._all, *self.changes])

    @property
    def changes(self) -> tuple[str, ...]:
        """What it sets besides its recipe."""
        return split_arm(self.arm)[1]

    @property
    def _all(self) -> list[str]:
        return [*self.settings, f"seed={self.seed}"]

    @property
    def float_cell(self) -> Cell:
        """The cell that trains this one's float model."""
        return Cell(self.net, FLOAT, self.seed, self.settings)

    @property
    def name(self) -> str:
        return f"{self.net}-{self.arm.replace('/', '_')}-{self.seed}"

    def key(self, data: dict[str, int | str]) -> str:
        """Identifies net, recipe, seed, every setting that matters and the data, in 16 hex digits."""
        settled = self.config.to_dict()
        settled["training"] = what_matters(settled["training"])
        if self.arm == FLOAT:
            settled = {"training": {k: v for k, v in settled["training"].items() if k in FLOAT_SETTINGS}}
        facts = json.dumps([self.net, self.arm, self.seed, settled, data], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Wanted:
    """A selection of cells."""

    preset: Preset
    nets: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    seeds: int = 2
    settings: tuple[str, ...] = field(default=())

    def cells(self) -> Iterator[Cell]:
        """Float models first, then the arms in order of telling, seed after seed."""
        nets = _known(self.nets or self.preset.nets, NETS, "net")
        arms = self.arms or self.preset.arms
        for arm in arms:
            split_arm(arm)
        settings = (*self.preset.settings, *self.settings)
        for seed in range(self.seeds):
            for arm in dict.fromkeys((FLOAT, *arms)):
                yield from (Cell(net, arm, seed, settings) for net in nets)


def _known(names: Iterable[str], known: Iterable[str], what: str) -> tuple[str, ...]:
    names, known = tuple(names), tuple(known)
    for name in names:
        if name not in known:
            apart = "names are separated by spaces; " if "," in name else ""
            raise UsageError(f"there is no {what} {name!r}", hint=f"{apart}known: {', '.join(sorted(known))}")
    return names
