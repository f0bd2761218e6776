"""XNOR-Net++: learned factors instead of computed ones."""

from dataclasses import replace

from binarize.config import Config, ConvConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import CLIP_GRADIENTS, NO_LINK, PUBLISHED

XNOR_PLUS_PLUS = Recipe(
    name="xnor++",
    summary="one learned factor per output channel; per row and column too, if the input's size may be fixed",
    source="Bulat and Tzimiropoulos, XNOR-Net++, BMVC 2019 (arXiv 1909.13863), section 3",
    config=Config(
        recipe="xnor++",
        surgery=replace(PUBLISHED, activation="prelu"),
        conv=ConvConfig(threshold="none", activation_gradient="clip", scale="learned"),
        link=NO_LINK,
    ),
    equations=(
        "y = PReLU(BN(Gamma * (sign(x) conv sign(W)))), Gamma_o learned, starting at mean |W_o|",
        "with conv.scale=spatial: Gamma = alpha_o beta_row gamma_column, all learned (the paper's best case)",
        CLIP_GRADIENTS,
    ),
    table1=("-", "-", "-", "57.1", "-"),
    cost="as el without links, plus float projections; conv.scale=spatial a product per pixel more",
    limits=(
        "a block's own shortcut is the only one",
        "conv.scale=spatial fixes the input's size, so it is an option and not the default; it is for 2-D convs alone",
    ),
)
