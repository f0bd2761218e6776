"""Bi-Real shortcuts: the net of `el` with links only where a conv keeps channels and size."""

from binarize.config import Config, LinkConfig
from binarize.recipes import Recipe

BIREAL = Recipe(
    name="bireal",
    summary="the net of `el` with identity links only, so that the difference is what Elastic-Link is worth",
    source="Liu et al., Bi-Real Net, ECCV 2018 (arXiv 1808.00278), section 3.2",
    config=Config(recipe="bireal", link=LinkConfig(kind="identity")),
)
