"""Latency, size and accuracy of models, side by side. Timing ONNX files needs neither torch nor onnx."""

from binarize.bench.compare import Benchmark, Contender, benchmark
from binarize.bench.timing import Latency, latency

__all__ = ["Benchmark", "Contender", "Latency", "benchmark", "latency"]
