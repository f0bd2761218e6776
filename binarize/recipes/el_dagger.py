"""EL-dagger: Elastic-Link trained the Real-to-Binary way."""

from dataclasses import replace

from binarize.config import Config, ConvConfig, TrainingConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import EL_LINK, GATE, MAGNITUDE_GRADIENTS, REAL_TO_BIN_STAGES, RPRELU

STAGES = tuple(stage if stage.name == "binary" else replace(stage, share=0.0) for stage in REAL_TO_BIN_STAGES)
"""At budgets of a few epochs the stages before the last cost more than they give (docs/results.md)."""

EL_DAGGER = Recipe(
    name="el-dagger",
    summary="Elastic-Link with Real-to-Binary's gate; its stages by option",
    source="Hu et al., Elastic-Link for Binarized Neural Network, AAAI 2022, Table 1, rows with a dagger",
    config=Config(
        recipe="el-dagger", conv=ConvConfig(gate=True, gate_start="even"), training=TrainingConfig(stages=STAGES)
    ),
    equations=(
        "y = RPReLU(BN(G(x) * alpha * (sign(x - tau) conv sign(W)) + gamma * EL(x))), alpha_o = mean |W_o|, detached",
        GATE,
        *EL_LINK,
        RPRELU,
        MAGNITUDE_GRADIENTS,
    ),
    table1=("67.1", "68.9", "61.2", "65.7", "66.5"),
    cost="a mean over the map and two small matrix products per conv",
    limits=(
        "whether the paper's net has the gate is not known; --set conv.gate=false leaves it out",
        "its gates begin with one factor for all, as links lose from random ones (docs/results.md); "
        "--set conv.gate_start=random has those",
        "the paper trains in real-to-bin's stages; here the first two have no share, as few epochs are better spent "
        "on the binary net; --set training.stages.tanh.share=75 and training.stages.activations.share=75 restore them",
    ),
)
