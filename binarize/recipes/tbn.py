"""TBN: ternary inputs, binary weights."""

from binarize.config import Config, ConvConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import BEHIND_NORM, CENTRED, NO_LINK, PUBLISHED

TBN = Recipe(
    name="tbn",
    summary="inputs in {-1, 0, 1}: 0 where they are small",
    source="Wan et al., TBN, ECCV 2018, section 3",
    config=Config(
        recipe="tbn",
        surgery=PUBLISHED,
        conv=ConvConfig(threshold="none", activations="ternary", weights="centred", weight_gradient="exact"),
        link=NO_LINK,
    ),
    equations=(
        "t(x) = 1 above delta, -1 at -delta and below, 0 between; delta = 0.4 mean |x| (a running mean)",
        "     = (sign(x - delta) + sign(x + delta)) / 2, two planes of bits; gradient where |x| < 1",
        "y = BN(alpha * (t(x) conv sign(W')))",
        *CENTRED,
    ),
    table1=("-", "-", "-", "55.6", "58.2"),
    cost="two planes of bits per input, counted as one, plus float projections: 1.1 to 1.4 times el's ResNet-18",
    limits=("a block's own shortcut is the only one", BEHIND_NORM),
)
