"""Elastic-Link with ReActNet's training."""

from binarize.config import Config, TrainingConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import EL_LINK, MAGNITUDE_GRADIENTS, REACTNET_STAGES, RPRELU

EL_REACTNET = Recipe(
    name="el-reactnet",
    summary="ReActNet's thresholds, activations and two-step training with Elastic-Link around every conv",
    source="Hu et al., Elastic-Link for Binarized Neural Network, AAAI 2022 (71.9 with ReActNet on ImageNet)",
    config=Config(recipe="el-reactnet", training=TrainingConfig(stages=REACTNET_STAGES)),
    equations=(
        "y = RPReLU(BN(alpha * (sign(x - tau) conv sign(W)) + gamma * EL(x))), alpha_o = mean |W_o|, detached",
        *EL_LINK,
        RPRELU,
        MAGNITUDE_GRADIENTS,
        "loss: cross entropy with the float model's softmax alone, in both steps: float weights, then binary ones",
    ),
    limits=("which ReActNet the paper's 71.9 builds on is not known",),
)
