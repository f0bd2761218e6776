"""Elastic-Link: a float shortcut around every binary conv, whatever its channels and stride."""

from binarize.config import Config
from binarize.recipes import Recipe
from binarize.recipes.parts import EL_LINK, MAGNITUDE_GRADIENTS, RPRELU

EL = Recipe(
    name="el",
    summary="Elastic-Link around every binary conv, RPReLU, per-channel thresholds, distillation from the float model",
    source="Hu et al., Elastic-Link for Binarized Neural Network, AAAI 2022 (arXiv 2112.10149)",
    config=Config(recipe="el"),
    equations=(
        "y = RPReLU(BN(alpha * (sign(x - tau) conv sign(W)) + gamma * EL(x))), alpha_o = mean |W_o|, detached",
        *EL_LINK,
        RPRELU,
        MAGNITUDE_GRADIENTS,
    ),
    table1=("64.0", "65.6", "56.4", "60.1", "63.2"),
    cost="the measure of the others",
    limits=(
        "the paper's full text was not at hand: where it is silent, the choices are ours (DECISIONS.md)",
        "projections are binary too; the published base nets keep them float: --keep rule:projection",
    ),
)
