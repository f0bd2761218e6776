"""Speed of the op kernels by layer shape, through ONNX Runtime: `python -m benchmarks.kernels`.

Each row is one BinaryConv2d with the full epilogue of a real layer (scale, bias, Elastic Link, slope, next
bits), input bits given, on a float32 and a float16 stream, and beside it the same node without link and float
output, which shows the convolution itself. Medians of many runs, minus the run time of an empty session, as
multiply-accumulates per cycle; the ceiling is what the instruction set's inner step reaches on registers alone,
the limits are what a bare loop from bits to bits, through floats, reaches in the nearest cache, by K. `ceiling.cc`
measures both in the same run (which needs a C++ compiler). Compare rows of one run only: machines and neighbours
differ. A run over all layers goes into results/kernels.json, which `python -m benchmarks.render` shows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests" / folder) for folder in ("", "native")]

KIND = "kernels"


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


@dataclass(frozen=True)
class Row:
    """What one layer takes on one instruction set, in microseconds, and its speed against the ceiling."""

    isa: str
    layer: str
    macs: int
    bits_us: float
    full_us: float
    half_us: float
    bits_mac_per_cycle: float | None
    full_mac_per_cycle: float | None
    ceiling: float | None

    def rounded(self) -> dict[str, Any]:
        """As plain data, to what was measured."""
        return {key: round(value, 1) if isinstance(value, float) else value for key, value in asdict(self).items()}


def measure_ceiling() -> dict[str, Any]:
    """`ghz`, `mac_per_cycle` and `limits` by instruction set of `ceiling.cc`; without a compiler nothing is known."""
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if compiler is None:
        return {"ghz": None, "mac_per_cycle": {}, "limits": {}}
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "ceiling")
        source = str(Path(__file__).with_name("ceiling.cc"))
        subprocess.run([compiler, "-O2", "-std=c++17", source, "-o", program], check=True)
        return dict(json.loads(subprocess.run([program], check=True, capture_output=True, text=True).stdout))


def measure_layer(layer: Layer, isa: str, threads: int, seconds: float, empty: float, ceiling: dict[str, Any]) -> Row:
    """One row of the table; sessions take the instruction set from the environment."""
    from op_models import conv_model, feeds, forced_isa, make_case, session_options

    from binarize.runtime import InferenceSession

    def measure(**options: Any) -> float:
        pad = layer.kernel // 2
        case = make_case(
            channels=layer.channels,
            out_channels=layer.out_channels,
            kernel=(layer.kernel, layer.kernel),
            size=(layer.size, layer.size),
            group=layer.group,
            strides=(layer.stride, layer.stride),
            pads=(pad, pad, pad, pad),
            **options,
        )
        if options.get("slope"):
            case.values["slope"][...] = 0.25  # what activations start with, and as fast as any up to 1
        with forced_isa(isa):
            session = InferenceSession(conv_model(case), session_options(threads))
        return median_microseconds(session, feeds(case), list(case.outputs), seconds) - empty

    def per_cycle(microseconds: float) -> float | None:
        ghz = ceiling["ghz"]
        return layer.macs / (microseconds * ghz * 1e3) if ghz else None

    bits = measure(outputs=("next_bits",))
    full, half = (measure(link=True, slope=True, stream=stream) for stream in (np.float32, np.float16))
    most = ceiling["mac_per_cycle"].get(isa)
    return Row(isa, layer.name, layer.macs, bits, full, half, per_cycle(bits), per_cycle(full), most)


def render(row: Row) -> str:
    """One line of the table."""

    def speed(value: float | None) -> str:
        if value is None:
            return f"{'':13}"
        share = f"{value / row.ceiling:5.0%}" if row.ceiling else f"{'':5}"
        return f"{value:7.0f} {share}"

    times = f"{row.bits_us:9.1f}{speed(row.bits_mac_per_cycle)}{row.full_us:9.1f}{speed(row.full_mac_per_cycle)}"
    return f"{row.layer:34}{row.macs / 1e6:7.1f}{times}{row.half_us:9.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", action="append", help="an instruction set, or `all`; may be repeated (default: best)")
    parser.add_argument("--seconds", type=float, default=0.2, help="per measurement")
    parser.add_argument("--only", default="", help="layers whose name contains this")
    arguments = parser.parse_args()

    from op_models import session_options

    from benchmarks import records
    from binarize.runtime import InferenceSession, active_isa
    from binarize.runtime.library import _info_model, supported_isas

    wanted = arguments.isa or [active_isa()]
    isas = dict.fromkeys(map(records.binary_isa, supported_isas() if "all" in wanted else wanted))
    ceiling = measure_ceiling()
    info = InferenceSession(_info_model(), session_options(arguments.threads))
    empty = median_microseconds(info, {}, ["isa"], arguments.seconds)
    clock = f"{ceiling['ghz']:.2f} GHz" if ceiling["ghz"] else "clock unknown"
    print(f"{arguments.threads} thread(s), {clock}; empty session {empty:.1f} us, subtracted")
    for isa in isas:
        most, limits = ceiling["mac_per_cycle"].get(isa), ceiling["limits"].get(isa)
        print(f"\n{isa}, ceiling {f'{most:.0f} MAC/cycle' if most else 'not measured'}")
        if limits:
            print("a loop with its epilogue:", ", ".join(f"{limit:.0f} at K = {k}" for k, limit in limits.items()))
        print(f"{'layer':34}{'MMAC':>7}{'bits us':>9}{'MAC/cycle':>13}{'full us':>9}{'MAC/cycle':>13}{'half us':>9}")
        rows = []
        for layer in LAYERS:
            if arguments.only in layer.name:
                rows.append(measure_layer(layer, isa, arguments.threads, arguments.seconds, empty, ceiling))
                print(render(rows[-1]))
        if len(rows) == len(LAYERS):
            found = {"ghz": ceiling["ghz"], "ceiling": most, "limits": limits}
            records.save(KIND, isa, arguments.threads, found | {"layers": [row.rounded() for row in rows]})


if __name__ == "__main__":
    main()
