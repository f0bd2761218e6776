"""ABC-Net: sums of binary bases on both sides."""

from binarize.config import Config, ConvConfig
from binarize.recipes import Recipe
from binarize.recipes.parts import BEHIND_NORM, NO_LINK, PUBLISHED

ABCNET = Recipe(
    name="abcnet",
    summary="M bases for the weights, N for the activations: M x N binary convolutions, closer to the float one",
    source="Lin et al., Towards Accurate Binary Convolutional Neural Network, NeurIPS 2017 (arXiv 1711.11294)",
    config=Config(
        recipe="abcnet",
        surgery=PUBLISHED,
        conv=ConvConfig(threshold="none", activations="bases", weights="bases", activation_bases=3, weight_bases=3),
        link=NO_LINK,
    ),
    equations=(
        "B_m = sign(W - mean W + u_m std W), u_m evenly from -1 to 1; alpha = argmin ||W - sum alpha_m B_m||^2",
        "A_n = sign(x + v_n - 1/2), gradient where 0 <= x + v_n <= 1; v_n and beta_n learned",
        "y = BN(sum over m, n of alpha_m beta_n (A_n conv B_m))",
        "dL/dW = g sum alpha_m, g the gradient of sum alpha_m B_m",
        "M = conv.weight_bases, N = conv.activation_bases, 3 each; the paper's Table 1 row is 1 and 1",
    ),
    table1=("45.2", "52.9", "NC", "42.7", "52.4"),
    cost="M x N binary convolutions per conv and M bits per weight, in one operator; float projections",
    limits=(
        "a block's own shortcut is the only one",
        "mean, deviation and alpha are per output channel, the paper's channel-wise form; v and beta start so that the "
        "bases spread over the deviation of the calibration images' values, instead of at fixed values",
        "3-D convs: an operator per pair of bases, M x N of them",
        BEHIND_NORM,
    ),
)
