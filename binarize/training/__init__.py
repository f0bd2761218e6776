"""Calibration and fine-tuning: the binary module learns from its float original."""

from binarize.training.calibration import calibrate
from binarize.training.evaluate import evaluate
from binarize.training.finetune import TrainingResult, adapt_float, check_data, finetune
from binarize.training.stages import parameter_groups

__all__ = ["TrainingResult", "adapt_float", "calibrate", "check_data", "evaluate", "finetune", "parameter_groups"]
