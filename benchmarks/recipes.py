"""Every recipe's latency against `el` on one network: `python -m benchmarks.recipes`.

Converts ResNet-18 with each recipe (random weights: speed does not depend on them), times all of them in turns, and
puts the figures into `results/recipes.json`; `python -m benchmarks.render` makes the table in docs/recipes.md.
CI-Net's edges, which training finds, are drawn at random here, as many as the recipe allows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import binarize
from benchmarks import records
from benchmarks.networks import FLOAT, MADE, images
from benchmarks.zoo import NETWORKS, as_trained
from binarize.api import resolve_config
from binarize.bench.compare import file_size
from binarize.bench.float_onnx import float_onnx
from binarize.bench.machine import pinned
from binarize.bench.profile import profile
from binarize.bench.race import onnx_command, race
from binarize.errors import BinarizeError
from binarize.nn import ChannelInteraction
from binarize.recipes import all_recipes

KIND = "recipes"
NETWORK = "resnet18"
OPTIONS = {
    "xnor, K": ("xnor", ("conv.box_scale=true",)),
    "xnor++, spatial": ("xnor++", ("conv.scale=spatial",)),
    "abcnet, 1 x 1": ("abcnet", ("conv.weight_bases=1", "conv.activation_bases=1")),
}
"""Contenders that change a recipe: name to recipe and settings."""


def contenders() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name to recipe and settings, `el` first."""
    plain = {name: (name, ()) for name in sorted(all_recipes(), key=lambda name: name != "el")}
    return plain | OPTIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--runs", type=records.timed_runs, default=30)
    parser.add_argument("--make-only", action="store_true", help="convert, but leave timing for a quiet moment")
    arguments = parser.parse_args()
    files = make(MADE / KIND)
    for threads in [] if arguments.make_only else arguments.threads:
        measure(files, threads, arguments.runs)


def make(folder: Path) -> dict[str, Path]:
    """Every contender as a file in `folder`, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = torch.from_numpy(images(2))
    made: dict[str, Path] = {}
    for name, (recipe, settings) in contenders().items():
        made[name] = folder / f"{name.replace(', ', '_').replace(' ', '')}.onnx"
        if records.is_current(made[name]):
            continue
        print(f"making {name}", flush=True)
        config = resolve_config(recipe, None, settings)
        module = as_trained(binarize.apply(NETWORKS[NETWORK].model(), inputs, config=config))
        for layer in module.modules():
            if isinstance(layer, ChannelInteraction):
                draw_edges(layer)
        binarize.export(module.eval(), made[name], check=False)
        records.mark_current(made[name])
    made[FLOAT] = folder / "float.onnx"
    if not made[FLOAT].exists():
        float_onnx(NETWORKS[NETWORK].model(), made[FLOAT], (inputs,))
    return made


def draw_edges(layer: ChannelInteraction) -> None:
    """Random edges in all slots of a layer, as its search could have found them."""
    generator = torch.Generator().manual_seed(0)
    channels = torch.randperm(layer.channels, generator=generator)
    count = len(layer.sign)
    layer.source.copy_(channels[:count])
    layer.target.copy_(channels[count : 2 * count])
    layer.sign.copy_(2 * torch.randint(2, (count,), generator=generator) - 1)


def measure(files: dict[str, Path], threads: int, runs: int) -> None:
    """Time all contenders in turns and save them as one row."""
    commands = {name: onnx_command(path, threads) for name, path in files.items()}
    with pinned(threads) as cores:
        found = race(commands, runs=runs, warmup=2)
    operators = {name: result.by_operator() for name, result in profile(files, threads=threads).items()}
    values = {
        "runs": runs,
        "pinned": len(cores),
        "contenders": records.finishes(found),
        "bytes": {name: file_size(path) for name, path in files.items()},
        "nodes": {name: sum(int(str(row["nodes"])) for row in rows) for name, rows in operators.items()},
    }
    records.save(KIND, NETWORK, threads, values)
    for name, result in found.items():
        shown = result.message if isinstance(result, BinarizeError) else f"{result.latency.median:8.3f} ms"
        print(f"{threads} thread(s), {name:20} {shown}", flush=True)


if __name__ == "__main__":
    main()
