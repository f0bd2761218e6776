"""Real-to-Binary: a data-driven gate, attention matching, and a ladder of teachers."""

from dataclasses import replace

from binarize.config import Config, ConvConfig, TrainingConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import CLIP_GRADIENTS, GATE, IDENTITY, NO_IDENTITY, PUBLISHED, REAL_TO_BIN_STAGES

REAL_TO_BIN = Recipe(
    name="real-to-bin",
    summary="a gate computed from the float input scales each channel; three stages, each taught by the one before",
    source="Martinez et al., Training Binary Neural Networks with Real-to-Binary Convolutions, ICLR 2020",
    config=Config(
        recipe="real-to-bin",
        surgery=replace(PUBLISHED, activation="prelu"),
        conv=ConvConfig(activation_gradient="clip", scale="none", gate=True),
        link=IDENTITY,
        training=TrainingConfig(stages=REAL_TO_BIN_STAGES),
    ),
    equations=(
        GATE,
        "y = PReLU(BN(G(x) * (sign(x - tau) conv sign(W))) + x); tau starts at the median",
        CLIP_GRADIENTS,
        "attention: mean squared difference of Q / max Q, Q = mean over channels of x^2, at the inputs of wide convs",
    ),
    table1=("64.8", "65.9", "54.8", "65.4", "66.1"),
    cost="a mean over the map and two small matrix products per conv, plus float projections",
    limits=(
        "the authors' blocks have the batch norm before the sign and the PReLU before the shortcut; a converted net "
        "keeps its own order, conv, batch norm, activation, and thresholds tau do what that norm does to the signs",
        NO_IDENTITY,
    ),
)
