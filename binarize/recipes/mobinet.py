"""MoBiNet: depthwise convs that see a few channels."""

from binarize.config import Config, ConvConfig, LinkConfig, SurgeryConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import MAGNITUDE_GRADIENTS

MOBINET = Recipe(
    name="mobinet",
    summary="depthwise convs become grouped ones of 4 channels, each conv that keeps its channels gets a shortcut",
    source="Phan et al., MoBiNet, WACV 2020 (arXiv 1907.12629), sections 3.2 and 3.3",
    config=Config(
        recipe="mobinet",
        surgery=SurgeryConfig(keep=("rule:projection",), activation="none", depthwise_inputs=4),
        conv=ConvConfig(threshold="none"),
        link=LinkConfig(kind="pooled", position="post_bn", gamma="one", residual="replace"),
    ),
    equations=(
        "depthwise 3x3 -> grouped 3x3 with K = 4 input channels per output (surgery.depthwise_inputs)",
        "y = BN(alpha * (sign(x) conv sign(W))) + pool(x), pool = average of the stride's window",
        "alpha_o = mean |W_o|, detached",
        MAGNITUDE_GRADIENTS,
    ),
    table1=("-", "-", "54.4", "-", "-"),
    cost="depthwise convs cost and weigh four times as much, an eighth of the float one's bits; float projections",
    limits=(
        "three quarters of a widened conv's weights are new and start with random signs",
        "the authors place one skip per block (Mid-block); here each conv that keeps its channels has one",
        "nets without depthwise convs get the shortcuts alone",
    ),
)
