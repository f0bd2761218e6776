"""XNOR-Net: signs of centred weights, scaled by their mean magnitude."""

from binarize.config import Config, ConvConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import BEHIND_NORM, CENTRED, NO_LINK, PUBLISHED

XNOR = Recipe(
    name="xnor",
    summary="signs of centred weights times their mean magnitude; the gradient goes through that mean",
    source="Rastegari et al., XNOR-Net, ECCV 2016 (arXiv 1603.05279), sections 3.1 and 3.2",
    config=Config(
        recipe="xnor",
        surgery=PUBLISHED,
        conv=ConvConfig(threshold="none", activation_gradient="clip", weights="centred", weight_gradient="exact"),
        link=NO_LINK,
    ),
    equations=(
        "y = BN(alpha * (sign(x) conv sign(W'))), d sign(x)/dx = 1[|x| <= 1]",
        *CENTRED,
        "with conv.box_scale: y = BN(K * alpha * (...)), K = box filter of mean over channels of |x|",
    ),
    table1=("52.1", "54.2", "NC", "51.2", "53.2"),
    cost="as el without links, plus float projections; conv.box_scale adds a float pass over the input",
    limits=(
        "a block's own shortcut is the only one, so deep nets and MobileNets lose most",
        "the authors' code scales this gradient by (1 - 1/C) n 1e9, which Adam takes out again; here it is exact",
        BEHIND_NORM,
        "depthwise: the mean over one input channel is the weight itself, so these stay uncentred; K is left out",
        "K is off: measured by others, it costs 1 to 2.4 points where a batch norm follows",
    ),
)
