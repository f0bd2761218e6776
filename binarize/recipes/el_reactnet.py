"""Elastic-Link with ReActNet's training."""

from binarize.config import Config, TrainingConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import REACTNET_STAGES

EL_REACTNET = Recipe(
    name="el-reactnet",
    summary="ReActNet's thresholds, activations and two-step training with Elastic-Link around every conv",
    source="Hu et al., Elastic-Link for Binarized Neural Network, AAAI 2022 (71.9 with ReActNet on ImageNet)",
    config=Config(recipe="el-reactnet", training=TrainingConfig(stages=REACTNET_STAGES)),
    equations=("y as in el; loss and steps as in reactnet",),
    limits=("which ReActNet the paper's 71.9 builds on is not known",),
)
