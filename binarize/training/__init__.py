"""Calibration and fine-tuning: the binary module learns from its float original."""

from binarize.training.evaluate import evaluate
from binarize.training.finetune import TrainingResult, adapt_float, finetune

__all__ = ["TrainingResult", "adapt_float", "evaluate", "finetune"]
