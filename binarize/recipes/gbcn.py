"""GBCN: kernels that also evolve."""

from binarize.config import Config, StageConfig, TrainingConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import (
    BIREAL_CONV,
    BIREAL_GRADIENTS,
    FLOAT_PROJECTIONS,
    IDENTITY,
    LAST_ACTIVATION,
    NO_IDENTITY,
    PUBLISHED,
)

GBCN = Recipe(
    name="gbcn",
    summary="Bi-Real Net whose kernels' bits also change by balanced crossover and mutation",
    source="Liu et al., Genetic Binary Convolutional Networks, 2019 (arXiv 1911.11634)",
    config=Config(
        recipe="gbcn",
        surgery=PUBLISHED,
        conv=BIREAL_CONV,
        link=IDENTITY,
        training=TrainingConfig(stages=(StageConfig(search="genetic"),)),
    ),
    equations=(
        "y = BN(alpha * (sign(x) conv sign(W))) + x, alpha_o = mean |W_o|, detached",
        "y = BN(...) + BN(projection(x)) where the block has a float projection for its shortcut",
        BIREAL_GRADIENTS,
        "every 20 steps: 8 kernels of a conv take bits from others and flip some, as many up as down;",
        "the changed conv stays if the loss on the batch falls",
    ),
    table1=("-", "-", "-", "57.8", "-"),
    cost=f"{FLOAT_PROJECTIONS}: bits are bits",
    limits=(
        "the paper's operators are known from secondary sources only",
        NO_IDENTITY,
        LAST_ACTIVATION,
    ),
)
