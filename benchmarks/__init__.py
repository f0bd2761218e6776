"""Measurements of speed: kernels, whole networks, peers. Results are data in `results`, read by docs/performance.md."""
