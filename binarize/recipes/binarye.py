"""BinaryE (ResNetE): Bi-Real's shortcuts without any scale."""

from binarize.config import Config, ConvConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import FLOAT_PROJECTIONS, IDENTITY, NO_IDENTITY, PUBLISHED

BINARYE = Recipe(
    name="binarye",
    summary="identity shortcuts, no scaling factors: the batch norm does their work; the base that el adds links to",
    source="Bethge et al., Training Competitive Binary Neural Networks from Scratch, 2018 (arXiv 1812.01965)",
    config=Config(
        recipe="binarye",
        surgery=PUBLISHED,
        conv=ConvConfig(threshold="none", activation_gradient="clip", clip=1.3, scale="none"),
        link=IDENTITY,
    ),
    equations=(
        "y = BN(sign(x) conv sign(W)) + x",
        "d sign(z)/dz = 1[|z| <= 1.3] for inputs and weights (1.0 in 2018, 1.3 in the authors' later code)",
    ),
    table1=("57.9", "61.2", "NC", "56.7", "59.5"),
    cost=FLOAT_PROJECTIONS,
    limits=(
        NO_IDENTITY,
        "the authors put a batch norm before the first block's sign; a converted net has pooling alone there, so "
        "that most of that conv's input bits are +1 (--set conv.threshold=median balances them)",
        "padded taps are 0, as everywhere here; the authors' code pads the signs with -1",
    ),
)
