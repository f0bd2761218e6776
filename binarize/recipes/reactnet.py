"""ReActNet: learned thresholds and activations, a distribution as the target."""

from dataclasses import replace

from binarize.config import Config, LinkConfig, TrainingConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import BIREAL_CONV, BIREAL_GRADIENTS, FLOAT_PROJECTIONS, PUBLISHED, REACTNET_STAGES, RPRELU

REACTNET = Recipe(
    name="reactnet",
    summary="learned thresholds and RPReLU, shortcuts that may duplicate channels, two-step distillation",
    source="Liu et al., ReActNet, ECCV 2020 (arXiv 2003.03488), sections 4.1 to 4.4",
    config=Config(
        recipe="reactnet",
        surgery=replace(PUBLISHED, activation="rprelu"),
        conv=replace(BIREAL_CONV, threshold="zero"),
        link=LinkConfig(kind="expand", position="post_bn", gamma="one", residual="replace"),
        training=TrainingConfig(stages=REACTNET_STAGES),
    ),
    equations=(
        "y = RPReLU(BN(alpha * (sign(x - tau) conv sign(W))) + pool(duplicate(x))), alpha_o = mean |W_o|, detached",
        "tau learned per channel, from 0",
        RPRELU,
        BIREAL_GRADIENTS,
        "loss: cross entropy with the float model's softmax alone, in both steps",
    ),
    table1=("-", "-", "-", "65.9", "-"),
    cost=FLOAT_PROJECTIONS,
    limits=(
        "channels that shrink, or grow by no whole number, have no shortcut",
        "the authors' MobileNet has full 3x3 convs in place of depthwise ones; a converter keeps the user's net",
        "float weights move in a tenth of the binary ones' step, which counts flips",
        "65.9 is the authors' ResNet-18, not in Table 1",
    ),
)
