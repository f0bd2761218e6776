"""The NEON kernels under emulation: `python tests/native/check_aarch64.py [--fetch FOLDER | --root FOLDER]`.

Cross-compiles the library, runs the C++ core test (NEON against scalar and a naive loop), then whole exported models,
one as it is and one with a float16 stream and int8 ends, in an aarch64 ONNX Runtime, on NEON and on scalar kernels:
every output must be equal bit for bit.

Needs cmake, `aarch64-linux-gnu-g++` (Debian: g++-aarch64-linux-gnu) and qemu-user, for ONNX Runtime 10.0 or newer
(older ones crash when it is imported; Debian 13 has one, whose static programs run unpacked on Debian 12, too). The
models also need a folder with an aarch64 Python 3.11, numpy and onnxruntime: `--fetch` makes one from Debian packages
and wheels. Where a tool is missing the check says which one and exits with 77, which automake and meson read as
"skipped". The variables QEMU_AARCH64 and AARCH64_ROOT name an emulator and a folder for
`tests/native/test_aarch64.py` too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NATIVE = Path(__file__).resolve().parents[2] / "binarize" / "native"
SKIPPED = 77
MINIMUM_QEMU = 10
"""For ONNX Runtime; older ones crash when it is imported."""
PACKAGES = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "zlib1g", "libexpat1", "libstdc++6",
    "libgcc-s1", "libffi8", "liblzma5", "libbz2-1.0", "libssl3", "libuuid1",
)  # fmt: skip

EXPORTS = {"default": (), "float16_int8": ("export.stream=float16", "export.stem=int8")}
"""The models: a file name, and the settings that it is exported with."""

# Runs inside the emulator: no onnx, no torch, no binarize.
CHILD = """
import json, os, sys
import numpy, onnxruntime
isa, library, data, *models = sys.argv[1:]
inputs = dict(numpy.load(data))

def run(model, isa):
    os.environ["BINARIZE_ISA"] = isa
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)

report = {"onnxruntime": onnxruntime.__version__}
for model in models:
    fast, scalar = run(model, isa), run(model, "scalar")
    equal = all(numpy.array_equal(a, b) for a, b in zip(fast, scalar))
    finite = all(bool(numpy.isfinite(a).all()) and bool(numpy.any(a)) for a in fast)
    report[os.path.basename(model)] = {"equal": equal, "finite": finite}
print(json.dumps(report))
"""


class Missing(Exception):
    """A tool this check needs is not there."""


def tool(name: str, hint: str) -> str:
    """The path of a program."""
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed ({hint})")
    return found


def emulator(minimum: int = 0) -> str:
    """The path of qemu-aarch64 of at least a major version."""
    names = [os.environ.get("QEMU_AARCH64"), "qemu-aarch64", "qemu-aarch64-static"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        raise Missing("qemu-aarch64 is not installed (qemu-user); QEMU_AARCH64 may name one")
    text = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"version (\d+)[\d.]*", text)
    if version is None or int(version[1]) < minimum:
        told = version[0] if version else "of no known version"
        raise Missing(f"{found} is {told}: onnxruntime needs qemu-user {minimum} or newer")
    return found


def cross_compile(build: Path) -> None:
    """The library and the core test for aarch64 in `build`."""
    cmake = tool("cmake", "cmake")
    compiler = tool("aarch64-linux-gnu-g++", "Debian: g++-aarch64-linux-gnu")
    options = [
        f"-DCMAKE_CXX_COMPILER={compiler}",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DBINARIZE_BUILD_TESTS=ON",
        "-DBINARIZE_WERROR=ON",
    ]
    subprocess.run([cmake, "-S", str(NATIVE), "-B", str(build), *options], check=True, capture_output=True)
    targets = ["--target", "core_test", "binarize_ops"]
    done = subprocess.run([cmake, "--build", str(build), *targets], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the library does not compile for aarch64:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def run_core_test(build: Path, cases: int = 300) -> str:
    """What the core test prints; raises when it fails."""
    sysroot = Path("/usr/aarch64-linux-gnu")
    if not sysroot.is_dir():
        raise Missing(f"{sysroot} does not exist (Debian: libc6-arm64-cross, libstdc++6-arm64-cross)")
    command = [emulator(), "-L", str(sysroot), str(build / "tests" / "core_test"), str(cases)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or "neon" not in done.stdout:
        raise RuntimeError(f"the core test failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def export_models(folder: Path) -> tuple[list[Path], Path]:
    """A small binary net with dense, strided, squeezing, grouped and depthwise convs, exported in every way of
    `EXPORTS`, and an input for it."""
    import numpy as np
    import torch
    from torch import nn

    import binarize
    from binarize import api

    torch.manual_seed(0)

    def unit(channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]

    model = nn.Sequential(
        *unit(3, 32, 3),
        nn.MaxPool2d(3, 2, 1),
        *unit(32, 80, 3),
        *unit(80, 80, 3, groups=80),
        *unit(80, 40, 1),
        *unit(40, 64, 3, 2),
        *unit(64, 64, 3, groups=4),
        *unit(64, 128, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    paths = [folder / f"{name}.onnx" for name in EXPORTS]
    for path, settings in zip(paths, EXPORTS.values(), strict=True):
        config = api.resolve_config("el", None, settings)
        binary = binarize.apply(model, images, config=config)
        fall_in_the_stem(binary)
        binarize.export(binary, path, images)
    np.savez(folder / "input.npz", input=images.numpy())
    return paths, folder / "input.npz"


def fall_in_the_stem(model: Any) -> None:
    """A few slopes below 0 behind the stem, as training gives some: then an int8 stem pools values, not sums."""
    slope = next(parameter for name, parameter in model.named_parameters() if "slope" in name)
    slope.data[:3] = -0.5


def is_right(report: dict) -> bool:
    """Whether every model gave equal and finite outputs, and none is missing."""
    found = [report.get(f"{name}.onnx", {}) for name in EXPORTS]
    return all(model.get("equal") and model.get("finite") for model in found)


def run_models(build: Path, root: Path, folder: Path) -> dict:
    """What the child reports about the exported models."""
    qemu, python = emulator(MINIMUM_QEMU), root / "root" / "usr" / "bin" / "python3.11"
    if not python.is_file():
        raise Missing(f"{root} holds no aarch64 Python (make one with --fetch)")
    models, data = export_models(folder)
    command = [qemu, "-L", str(root / "root"), "-E", f"PYTHONPATH={root / 'site'}", str(python), "-c", CHILD]
    return ask([*command, "neon", str(build / "libbinarize_ops.so")], models, data)


def ask(child: list[str], models: list[Path], data: Path) -> dict:
    """What `child`, a command line with instruction set and library, reports about the models."""
    done = subprocess.run([*child, str(data), *map(str, models)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"a model failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    report: dict = json.loads(done.stdout.splitlines()[-1])
    return report


def fetch(root: Path) -> None:
    """Debian packages and wheels of an aarch64 Python with onnxruntime into `root`; nothing of the system changes."""
    for name in ("state/lists/partial", "cache/archives/partial", "debs", "root", "site", "wheels"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "state" / "status").touch()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    sources = root / "sources.list"
    sources.write_text(f"deb [signed-by={keyring}] http://deb.debian.org/debian bookworm main\n")
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": root / "state",
        "Dir::State::status": root / "state" / "status",
        "Dir::Cache": root / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
    }
    apt = [tool("apt-get", "Debian"), *[f"-o{name}={value}" for name, value in settings.items()]]
    subprocess.run([*apt, "update"], check=True, capture_output=True)
    subprocess.run([*apt, "download", *PACKAGES], check=True, capture_output=True, cwd=root / "debs")
    for package in (root / "debs").glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(root / "root")], check=True)
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in (28, 27)] + ["manylinux2014_aarch64"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(root / "site")]
    pip += ["--only-binary=:all:", "--python-version", "3.11", *[f"--platform={name}" for name in platforms]]
    subprocess.run([*pip, "onnxruntime", "numpy"], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fetch", type=Path, help="make this folder with an aarch64 Python first (needs the network)")
    parser.add_argument("--root", type=Path, help="a folder --fetch made", default=os.environ.get("AARCH64_ROOT"))
    parser.add_argument("--cases", type=int, default=300, help="of the core test")
    arguments = parser.parse_args()
    root = arguments.fetch or arguments.root
    try:
        if arguments.fetch:
            fetch(arguments.fetch.resolve())
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            cross_compile(folder / "build")
            print(run_core_test(folder / "build", arguments.cases), end="")
            if root is None:
                raise Missing("no folder with an aarch64 Python for the models: give --fetch or --root")
            report = run_models(folder / "build", Path(root).resolve(), folder)
    except Missing as missing:
        print(f"skipped: {missing}")
        return SKIPPED
    right = is_right(report)
    print("ok    " if right else "FAILED", json.dumps(report))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
