"""Bi-Real Net: a shortcut per conv, and gradients nearer to those of the sign."""

from binarize.config import Config
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

BIREAL = Recipe(
    name="bireal",
    summary="an identity shortcut around every conv that keeps its shape; ApproxSign",
    source="Liu et al., Bi-Real Net, ECCV 2018 (arXiv 1808.00278), sections 3.2 to 3.4",
    config=Config(recipe="bireal", surgery=PUBLISHED, conv=BIREAL_CONV, link=IDENTITY),
    equations=(
        "y = BN(alpha * (sign(x) conv sign(W))) + x, alpha_o = mean |W_o|, detached",
        "y = BN(...) + BN(projection(x)) where the block has a float projection for its shortcut",
        BIREAL_GRADIENTS,
        "(of the released code; the paper's alpha 1[|W| <= 1]: --set conv.weight_gradient=magnitude)",
    ),
    table1=("57.8", "62.7", "NC", "56.4", "62.2"),
    cost=FLOAT_PROJECTIONS,
    limits=(
        NO_IDENTITY,
        LAST_ACTIVATION,
        "the 50-layer net of the authors links tensors of equal width across blocks; a converter keeps the user's net",
    ),
)
