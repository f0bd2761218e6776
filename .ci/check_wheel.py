"""Runs in an environment that holds only the wheel, numpy and onnxruntime: the model must give what torch gave."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

import binarize

folder = Path(sys.argv[1])
assert "site-packages" in binarize.__file__, f"this is not the installed wheel: {binarize.__file__}"
assert importlib.util.find_spec("torch") is None, "torch is here, so the check would prove nothing"
assert importlib.util.find_spec("onnx") is None, "onnx is here, so the check would prove nothing"
expected = np.load(folder / "expected.npz")
session = binarize.InferenceSession(folder / "model.onnx")
logits = session.run(None, {session.get_inputs()[0].name: expected["images"]})[0]
# One image whose sign sits on a rounding edge may differ; four of four must not.
close = np.isclose(logits, expected["logits"], rtol=1e-3, atol=1e-3).all(axis=1)
assert close.mean() >= 0.75, f"only {close.sum()} of {len(close)} images agree with torch"
command = Path(sys.executable).parent / "binarize"
answer = subprocess.run([command, "--help"], capture_output=True, text=True, check=False)
assert answer.returncode == 5 and "binarize-nn[convert]" in answer.stderr, answer
print(
    f"the wheel works in onnxruntime {onnxruntime.__version__}: {close.sum()} of {len(close)} images agree with torch, "
    f"on {binarize.runtime.active_isa()}"
)
