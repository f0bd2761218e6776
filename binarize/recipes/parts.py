"""Choices that several recipes share."""

from __future__ import annotations

from binarize.config import ConvConfig, LinkConfig, StageConfig, SurgeryConfig

PUBLISHED = SurgeryConfig(keep=("rule:projection",), activation="none")
"""Downsampling projections stay float, as in every published ResNet row; no activation between BN and sign."""

NO_LINK = LinkConfig(kind="none", position="post_bn", gamma="channel")
"""One that is switched on is added behind the batch norm: before it a link vanishes among sums without a scale."""
IDENTITY = LinkConfig(kind="identity", position="post_bn", gamma="one", residual="replace")
"""A shortcut per conv instead of one per block, without a weight, where the conv keeps channels and size."""

BIREAL_CONV = ConvConfig(threshold="none", activation_gradient="approx", weight_gradient="clip")

BEHIND_NORM = (
    "the paper's block is batch norm, sign, conv; a converted net keeps its own order, conv, batch norm, sign, and its "
    "activations between norm and sign go, as the sign of what a ReLU gives carries nothing"
)
"""A limit of the recipes whose papers have another order."""

NO_IDENTITY = (
    "convs that change channels or size have no identity: they go without, or with the block's float projection"
)
LAST_ACTIVATION = "the last activation before the classifier stays, as it feeds no sign; the paper has none"
FLOAT_PROJECTIONS = "as el, plus float projections"
"""The cost of recipes with `PUBLISHED` surgery that compute nothing else of their own."""

EL_LINK = (
    "EL: channels that grow are copied, channels that shrink are summed in groups, strides are averaged",
    "one gamma learned per link, starting at 1, or at 1/r for a sum of r channels, or 0 where the link closes a "
    "block that has its own shortcut; tau starts at the median",
)
GATE = "G(x) = sigmoid(W2 relu(W1 mean over pixels of x)), one factor per image and output channel"
RPRELU = "RPReLU(x) = PReLU(x - a) + b, all per channel"
MAGNITUDE_GRADIENTS = "d sign(z)/dz = 2 - 2|z| on (-1, 1), else 0; d(alpha sign(W))/dW = alpha 1[|W| <= 1]"
BIREAL_GRADIENTS = "d sign(z)/dz = 2 - 2|z| on (-1, 1), else 0; d(alpha sign(W))/dW = 1[|W| <= 1]"
CLIP_GRADIENTS = "d sign(z)/dz = 1[|z| <= 1] for inputs and weights"
CENTRED = (
    "W' = clamp(W - mean over input channels of W, -1, 1); alpha_o = mean |W'_o|",
    "dL/dW' = alpha g 1[|W'| <= 1] + sign(W')/n sum(g sign(W')), g the gradient of alpha sign(W')",
)
"""Lines of equations that several recipes share."""

REAL_TO_BIN_STAGES = (
    StageConfig(
        name="tanh",
        share=75,
        activations="tanh",
        weights="float",
        distillation=3.0,
        attention=30.0,
        weight_rate=0.1,
        weight_decay=1e-5,
    ),
    StageConfig(
        name="activations",
        share=75,
        weights="float",
        teacher="previous",
        distillation=3.0,
        attention=30.0,
        weight_rate=0.1,
        weight_decay=1e-5,
    ),
    StageConfig(name="binary", share=100, teacher="previous", distillation=0.8),
)
"""The staged teachers of Real-to-Binary; shares are the published epochs. Its last stage has a fifth of the rate of the
ones before; at short budgets signs then hardly flip, so here the rate stays. Rates fall by a cosine instead of in
steps, and float weights move in a tenth of the binary ones' step, which counts flips."""

REACTNET_STAGES = (
    StageConfig(
        name="activations",
        share=128,
        weights="float",
        cross_entropy=0.0,
        weight_rate=0.1,
        weight_decay=1e-5,
        schedule="linear",
    ),
    StageConfig(name="binary", share=128, cross_entropy=0.0, schedule="linear"),
)
"""Two steps, the float model's distribution as the only target."""
