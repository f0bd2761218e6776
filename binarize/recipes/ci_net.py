"""CI-Net (CI-BCNN): channels that correct each other's bitcounts."""

from dataclasses import replace

from binarize.config import Config, ConvConfig, StageConfig, TrainingConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import CLIP_GRADIENTS, NO_LINK, PUBLISHED

CI_NET = Recipe(
    name="ci-net",
    summary="strong accumulators of one channel correct another's; the edges are found while training",
    source="Wang et al., Learning Channel-wise Interactions for Binary CNNs, CVPR 2019, sections 3.2 and 3.3",
    config=Config(
        recipe="ci-net",
        surgery=replace(PUBLISHED, activation="hardtanh"),
        conv=ConvConfig(threshold="none", activation_gradient="clip", scale="none", interactions=16),
        link=NO_LINK,
        training=TrainingConfig(stages=(StageConfig(search="interactions"),)),
    ),
    equations=(
        "acc = sign(x) conv sign(W)",
        "acc_j += s * 0.17n * (1[acc_i >= 0.35n] - 1[acc_i <= -0.35n]) for each edge i -> j with sign s, fan-in n",
        "y = hardtanh(BN(acc))",
        f"{CLIP_GRADIENTS}; a correction passes the gradient on to acc_j, none to acc_i",
    ),
    table1=("-", "-", "-", "56.7", "62.4"),
    cost="convs with edges: two small binary convs more and a float map between these and the conv; float projections",
    limits=(
        "a block's own shortcut is the only one (the paper's better variant adds Bi-Real's: --set link.kind=identity)",
        "at most conv.interactions = 16 edges per conv (the authors': up to 100); no channel is both source and target",
        "the sign of the lower branch is minus, which the authors' code seems to have mistyped",
        "the paper finds edges by reinforcement learning; here random edges stay if the loss on the batch falls",
    ),
)
