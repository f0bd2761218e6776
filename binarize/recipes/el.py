"""Elastic-Link: a float shortcut around every binary conv, whatever its channels and stride."""

from binarize.config import Config
from binarize.recipes import Recipe

EL = Recipe(
    name="el",
    summary="Elastic-Link around every binary conv, RPReLU, per-channel thresholds, distillation from the float model",
    source="Hu et al., Elastic-Link for Binarized Neural Network, AAAI 2022 (arXiv 2112.10149)",
    config=Config(recipe="el"),
)
