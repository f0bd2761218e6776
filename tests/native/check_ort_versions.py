"""Runs the op library in other versions of ONNX Runtime: `python .../check_ort_versions.py [1.18.1 newest ...]`.

Each version is installed with pip into a folder that is deleted afterwards; nothing of the environment
changes. The oldest supported version must give the kernels' exact results and run the model-local functions
without the library; 1.17 must be refused with a message. Needs the network, so it is no test of the suite but a step of
`.ci/run`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ["1.17.3", "1.18.1", "newest"]
OLDEST = (1, 18)
WANTED = ("float32_1", "float32_2", "float16_1", "float16_2", "registers", "function_float32", "function_float16")

# Runs inside the other version: no onnx, no test helpers, only what a user of the runtime has.
CHILD = """
import json, sys
import numpy as np, onnxruntime
folder, library = sys.argv[1:]
report = {"version": onnxruntime.__version__}

def load(stream):
    data = dict(np.load(f"{folder}/{stream}.npz"))
    return data, {name[3:]: value for name, value in data.items() if name.startswith("in_")}

try:
    from binarize.runtime import InferenceSession, active_isa
    report["isa"] = active_isa()
    for stream in ("float32", "float16"):
        data, inputs = load(stream)
        for threads in (1, 2):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = InferenceSession(f"{folder}/{stream}.onnx", options)
            y, bits = session.run(None, inputs)
            equal = np.array_equal(y, data["y"]) and np.array_equal(bits, data["next_bits"])
            report[f"{stream}_{threads}"] = bool(equal)
    report["shapes"] = [output.shape for output in session.get_outputs()]
except Exception as error:
    report["error"] = str(error)
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
try:
    options.register_custom_ops_library(library)
    report["registers"] = True
except Exception as error:
    report["register_error"] = str(error)
try:
    for stream, tolerance in (("float32", 1e-3), ("float16", 0.25)):  # y reaches 256, where float16 steps by 0.25
        data, inputs = load(stream)
        session = onnxruntime.InferenceSession(f"{folder}/{stream}.onnx", providers=["CPUExecutionProvider"])
        y = session.run(["y"], inputs)[0].astype(np.float32)
        report[f"function_{stream}"] = bool(np.allclose(y, data["y"].astype(np.float32), rtol=1e-3, atol=tolerance))
except Exception as error:
    report["function_error"] = str(error)
print(json.dumps(report))
"""


def make_models(folder: Path) -> None:
    """Models of one node with everything on, one per stream, their inputs and the expected outputs."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "native")]
    import numpy as np
    from op_models import conv_model, feeds, make_case

    from binarize.exporting.functions import model_local_functions

    every = dict.fromkeys(("link", "residual", "slope", "shift"), True)
    for stream in (np.float32, np.float16):
        case = make_case(channels=70, out_channels=96, strides=(2, 2), stream=stream, **every)
        name = np.dtype(stream).name
        (folder / f"{name}.onnx").write_bytes(conv_model(case, model_local_functions()))
        y, next_bits = case.expected()
        inputs = {f"in_{n}": a for n, a in feeds(case).items()}
        np.savez(folder / f"{name}.npz", y=y, next_bits=next_bits, **inputs)


def check(version: str, folder: Path) -> dict:
    """What happened in one version."""
    from binarize.runtime import library_path

    target = folder / version
    requirements = ["onnxruntime"] if version == "newest" else [f"onnxruntime=={version}", "numpy<2"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-warn-conflicts", "--target", str(target)]
    subprocess.run([*pip, *requirements], check=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    command = [sys.executable, "-c", CHILD, str(folder), str(library_path())]
    output = subprocess.run(command, capture_output=True, text=True, env=environment)
    if output.returncode != 0:
        return {"version": version, "crash": output.stderr[-2000:]}
    return json.loads(output.stdout.splitlines()[-1])


def is_right(report: dict) -> bool:
    """Whether a version did what it should."""
    old = tuple(int(part) for part in report["version"].split(".")[:2]) < OLDEST
    if old:
        return "too old" in report.get("error", "") and "needs onnxruntime >= 1.18" in report.get("register_error", "")
    return all(report.get(name) for name in WANTED)


def main() -> int:
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder)
        for version in sys.argv[1:] or VERSIONS:
            report = check(version, folder)
            right = is_right(report)
            failures += not right
            print("ok    " if right else "FAILED", json.dumps(report))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
