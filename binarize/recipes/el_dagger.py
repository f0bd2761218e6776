"""EL-dagger: Elastic-Link trained the Real-to-Binary way."""

from binarize.config import Config, ConvConfig, TrainingConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import REAL_TO_BIN_STAGES

EL_DAGGER = Recipe(
    name="el-dagger",
    summary="Elastic-Link with Real-to-Binary's gate and stages",
    source="Hu et al., Elastic-Link for Binarized Neural Network, AAAI 2022, Table 1, rows with a dagger",
    config=Config(recipe="el-dagger", conv=ConvConfig(gate=True), training=TrainingConfig(stages=REAL_TO_BIN_STAGES)),
    equations=(
        "y = RPReLU(BN(G(x) * alpha * (sign(x - tau) conv sign(W))) + gamma * EL(x)), EL as in el, G as in real-to-bin",
    ),
    table1=("67.1", "68.9", "61.2", "65.7", "66.5"),
    cost="as real-to-bin",
    limits=("whether the paper's net has the gate is not known; --set conv.gate=false leaves it out",),
)
