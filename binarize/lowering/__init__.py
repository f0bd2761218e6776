"""Lowering: a trained binary module becomes a functional graph of a few fused, bit-packed operators."""

from binarize.lowering.functional import Shapes
from binarize.lowering.lower import LOWERING_PASSES, Lowered, dynamic_batch, float_inputs, lower
from binarize.lowering.sizes import any_batches, any_sizes

__all__ = [
    "LOWERING_PASSES",
    "Lowered",
    "Shapes",
    "any_batches",
    "any_sizes",
    "dynamic_batch",
    "float_inputs",
    "lower",
]
