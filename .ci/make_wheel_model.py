"""Writes a small binary model, inputs and the outputs it must give, for `check_wheel.py`."""

import sys
from pathlib import Path

import numpy as np
import torch

import binarize
from examples.digits_cnn import digits_cnn

folder = Path(sys.argv[1])
torch.manual_seed(0)
images = torch.randn(4, 1, 8, 8)
module = binarize.apply(digits_cnn(), images).eval()
binarize.export(module, folder / "model.onnx", images)
with torch.no_grad():
    np.savez(folder / "expected.npz", images=images.numpy(), logits=module(images).numpy())
