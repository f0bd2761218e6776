"""Speed of the op kernels by layer shape, through ONNX Runtime: `python benchmarks/kernels.py`.

Each row is one BinaryConv2d with the full epilogue of a real layer (scale, bias, Elastic Link, slope, next
bits), input bits given, and beside it the same node without link and float output, which shows the
convolution itself. Medians of many runs, minus the run time of an empty session. Compare rows of one run
only: machines and neighbours differ.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests" / folder) for folder in ("", "native")]


@dataclass(frozen=True)
class Layer:
    """One convolution of a real net."""

    kernel: int
    channels: int
    out_channels: int
    size: int
    stride: int = 1
    group: int = 1

    @property
    def name(self) -> str:
        kind = "depthwise" if self.group == self.channels else f"g{self.group}" if self.group > 1 else ""
        stride = f" s{self.stride}" if self.stride > 1 else ""
        shape = f"{self.kernel}x{self.kernel}{stride} {self.channels}->{self.out_channels}"
        return f"{shape} @{self.size} {kind}".strip()

    @property
    def macs(self) -> int:
        extent = -(-self.size // self.stride)
        return extent * extent * self.out_channels * self.kernel**2 * self.channels // self.group


LAYERS = [
    Layer(1, 64, 256, 56),
    Layer(1, 256, 64, 56),
    Layer(3, 64, 64, 56),
    Layer(3, 128, 128, 28),
    Layer(1, 128, 512, 28),
    Layer(1, 512, 128, 28),
    Layer(1, 1024, 256, 14),
    Layer(1, 256, 1024, 14),
    Layer(3, 256, 256, 14),
    Layer(3, 256, 256, 28, stride=2),
    Layer(3, 512, 512, 7),
    Layer(1, 2048, 512, 7),
    Layer(1, 512, 2048, 7),
    Layer(3, 64, 64, 112, group=64),
    Layer(3, 128, 128, 56, group=128),
    Layer(3, 256, 256, 56, stride=2, group=256),
    Layer(3, 512, 512, 14, group=512),
    Layer(3, 128, 128, 56, group=32),
    Layer(3, 512, 512, 14, group=32),
]


def median_microseconds(session: Any, feeds: dict[str, np.ndarray], outputs: list[str], seconds: float) -> float:
    """Median time of a run with inputs and outputs bound beforehand."""
    import onnxruntime

    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    first = session.run(outputs, feeds)
    for name, value in zip(outputs, first, strict=True):
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 20:
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", help="force an instruction set")
    parser.add_argument("--seconds", type=float, default=0.2, help="per measurement")
    parser.add_argument("--only", default="", help="layers whose name contains this")
    arguments = parser.parse_args()
    if arguments.isa:
        os.environ["BINARIZE_ISA"] = arguments.isa

    from op_models import conv_model, feeds, make_case, session_options

    from binarize.runtime import InferenceSession, active_isa
    from binarize.runtime.library import _info_model

    def measure(case: Any) -> float:
        session = InferenceSession(conv_model(case), session_options(arguments.threads))
        return median_microseconds(session, feeds(case), list(case.outputs), arguments.seconds)

    empty = median_microseconds(
        InferenceSession(_info_model(), session_options(arguments.threads)), {}, ["isa"], arguments.seconds
    )
    print(f"isa {active_isa()}, {arguments.threads} thread(s); empty session {empty:.1f} us, subtracted")
    print(f"{'layer':34}{'MMAC':>7}{'bits us':>9}{'GMAC/s':>8}{'full us':>9}{'GMAC/s':>8}")
    for layer in LAYERS:
        if arguments.only not in layer.name:
            continue
        pad = layer.kernel // 2
        common: dict[str, Any] = {
            "channels": layer.channels,
            "out_channels": layer.out_channels,
            "kernel": (layer.kernel, layer.kernel),
            "size": (layer.size, layer.size),
            "group": layer.group,
            "strides": (layer.stride, layer.stride),
            "pads": (pad, pad, pad, pad),
        }
        bits = measure(make_case(**common, outputs=("next_bits",))) - empty
        full = measure(make_case(**common, link=True, slope=True)) - empty
        print(
            f"{layer.name:34}{layer.macs / 1e6:7.1f}{bits:9.1f}{layer.macs / bits / 1e3:8.0f}"
            f"{full:9.1f}{layer.macs / full / 1e3:8.0f}"
        )


if __name__ == "__main__":
    main()
