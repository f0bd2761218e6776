"""The figures of docs from the committed results: `python -m benchmarks.render`.

The prose of the pages is written by hand; what stands between `<!-- name -->` and `<!-- end -->` is made here.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.convs import UNLIMITED
from benchmarks.peers import DENSE, LINKS, RIVALS
from benchmarks.records import Row
from benchmarks.zoo import NETWORKS
from binarize.files import write_text
from binarize.runtime.library import DOMAIN

PAGE = records.ROOT / "docs" / "performance.md"
PAGES = (PAGE, PAGE.with_name("recipes.md"))
PLOT = PAGE.with_suffix(".svg")
FLOAT = "ORT float32"
INT8 = ("ORT int8", "OpenVINO int8")
OURS = ("binary", "binary, int8 ends", "binary, float16", "binary, float16, int8 ends")
SHOWN = (*OURS, *INT8, "OpenVINO default", "OpenVINO float32", FLOAT)


def main() -> None:
    for page in PAGES:
        write_text(page, rendered(page.read_text(encoding="utf-8")))
    plot(PLOT)


def rendered(page: str) -> str:
    """`page` with every generated part made anew.

    Raises:
        KeyError: the page asks for a part that nobody makes.
    """
    pattern = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->", re.DOTALL)
    return pattern.sub(lambda match: f"<!-- {match[1]} -->\n{PARTS[match[1]]()}\n<!-- end -->", page)


def data_digest() -> str:
    """Of what the plot shows."""
    return hashlib.sha256(json.dumps(_speedups(), sort_keys=True).encode()).hexdigest()


def plot(path: Path) -> None:
    """Speed-ups over float32 in ONNX Runtime."""
    from matplotlib import pyplot

    from binarize.bench.plot import grouped_bars, save_figure

    figure, axes = pyplot.subplots(figsize=(8, 7), layout="constrained")
    grouped_bars(axes, _speedups(), SHOWN[:-1], "times as fast as ONNX Runtime in float32 (batch 1, one thread)")
    axes.axvline(1, color="black", linewidth=0.8)
    save_figure(figure, path, description=data_digest())


def _speedups() -> dict[str, list[float | None]]:
    return {
        NETWORKS[row["subject"]].title: [_ratio(row, FLOAT, name) for name in SHOWN[:-1]]
        for row in _networks(threads=1)
    }


def _networks(threads: int, cpu: str | None = None) -> list[Row]:
    """The rows of whole networks in the zoo's order, by default on the main CPU."""
    cpu = cpu or records.main_cpu("networks")
    found = (records.find("networks", name, threads, cpu) for name in NETWORKS)
    return [row for row in found if row is not None]


def _on_every_cpu(threads: int) -> list[Row]:
    """The rows of whole networks on the main CPU, then on the others."""
    return [row for cpu in records.cpus("networks") for row in _networks(threads, cpu)]


def _cpu(row: Row) -> str:
    """Family and model, which the names of virtual CPUs leave out."""
    return str(row["machine"]["cpu"]).rpartition("(")[2].removesuffix(")")


def _time(row: Row | None, contender: str) -> float | None:
    found = None if row is None else row["contenders"].get(contender, {}).get("median")
    return None if found is None else float(found)


def _ratio(row: Row, slow: str, fast: str) -> float | None:
    """How many times as fast as `slow` the contender `fast` is, by medians of one run."""
    above, below = _time(row, slow), _time(row, fast)
    return None if above is None or below is None else above / below


def _best(row: Row, names: Sequence[str]) -> str:
    """The fastest of the contenders `names`."""
    return min((name for name in names if _time(row, name) is not None), key=lambda name: _time(row, name) or 0.0)


def _ours(row: Row) -> list[str]:
    return [name for name in row["contenders"] if name.startswith("binary")]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ms(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _machines() -> str:
    """The machines and versions the figures are from, once each."""
    kinds = {
        json.dumps(row["machine"], sort_keys=True): row
        for kind in ("networks", "peers", "kernels")
        for row in records.read(kind)
    }
    lines = []
    for row in kinds.values():
        machine = dict(row["machine"])
        cpu, caches, cores, isa = (machine.pop(key) for key in ("cpu", "caches", "cores", "isa"))
        versions = ", ".join(f"{name} {version}" for name, version in machine.items())
        lines.append(f"* {cpu}, {caches}, {cores} cores, kernels `{isa}`; {versions}")
    return "\n".join(lines)


def _latency() -> str:
    """Median milliseconds with one thread."""
    rows = [
        [NETWORKS[row["subject"]].title, *(_ms(_time(row, name)) for name in SHOWN), f"`{row['source']}`", _cpu(row)]
        for row in _on_every_cpu(threads=1)
    ]
    return _table(("network", *SHOWN, "commit", "CPU"), rows)


def _targets() -> str:
    """The best of our versions against what it is meant to reach."""
    rows = []
    for row in _on_every_cpu(threads=1):
        network, ours = NETWORKS[row["subject"]], _best(row, _ours(row))
        rival = _best(row, INT8)
        cells = [network.title, _cpu(row), f"{ours}: {_ms(_time(row, ours))} ms"]
        for other, target in ((FLOAT, network.against_float), (rival, network.against_int8)):
            ratio = _ratio(row, other, ours) or 0.0
            cells.append(
                f"**{ratio:.1f}x** of {other}, target {target:g}x: {'reached' if ratio >= target else 'not reached'}"
            )
        rows.append(cells)
    return _table(("network", "CPU", "our fastest version", "against float32", "against the fastest int8"), rows)


def _linear() -> str:
    """Networks whose hidden linear layers have a variant of their own."""
    rows = []
    for row in _networks(threads=1):
        if NETWORKS[row["subject"]].linear:
            for name in _ours(row):
                ratios = [f"{_ratio(row, FLOAT, name) or 0:.1f}x", f"{_ratio(row, _best(row, INT8), name) or 0:.1f}x"]
                size = f"{row['bytes'][name] / 1e6:.1f} MB"
                rows.append([NETWORKS[row["subject"]].title, name, _ms(_time(row, name)), *ratios, size])
    return _table(("network", "version", "ms", "against float32", "against the fastest int8", "file"), rows)


def _threads() -> str:
    """Two threads against one."""
    two = {(row["subject"], _cpu(row)): row for row in _on_every_cpu(threads=2)}
    rows = []
    for row in _on_every_cpu(threads=1):
        pair = two.get((row["subject"], _cpu(row)))
        if pair is not None:
            cells = [NETWORKS[row["subject"]].title]
            for name in ("binary", FLOAT, "ORT int8"):
                one, both = _time(row, name), _time(pair, name)
                cells.append("–" if not one or not both else f"{both:.2f} ms ({one / both:.2f}x)")
            rows.append([*cells, f"{_ratio(pair, FLOAT, 'binary') or 0:.1f}x", _cpu(row)])
    return _table(("network", "binary", FLOAT, "ORT int8", "binary against float32, two threads", "CPU"), rows)


def _memory() -> str:
    """Peak resident memory less that of the interpreter and its libraries, and file sizes."""
    rows = []
    for row in _networks(threads=1):
        cells = [NETWORKS[row["subject"]].title]
        for name in ("binary", FLOAT, "ORT int8"):
            found = row["contenders"].get(name, {})
            peak = (found.get("peak_rss", 0) - found.get("base_rss", 0)) / 1e6
            cells.append(f"{peak:.0f} MB; {row['bytes'][name] / 1e6:.1f} MB")
        rows.append(cells)
    return _table(("network: memory; file", "binary", FLOAT, "ORT int8"), rows)


def _profile() -> str:
    """The binary network's time by kind of operator."""
    kinds = {
        "binary convs": lambda op: op.startswith(f"{DOMAIN}.Binary"),
        "our other operators": lambda op: op.startswith(DOMAIN),
        "float convs (the stem)": lambda op: op in ("Conv", "FusedConv"),
        "classifier": lambda op: op in ("Gemm", "MatMul", "FusedGemm"),
        "layout (Transpose, Reorder)": lambda op: op.startswith(("Transpose", "Reorder")),
    }
    rows = []
    for row in _networks(threads=1):
        operators = row["profiles"]["binary"]
        cells = [NETWORKS[row["subject"]].title, _ms(sum(operators.values()))]
        left = dict(operators)
        for belongs in kinds.values():
            cells.append(_ms(sum(left.pop(op) for op in list(left) if belongs(op))))
        largest = sorted(left, key=lambda op: -left[op])[:3]
        cells.append(f"{_ms(sum(left.values()))} ({', '.join(largest)})")
        rows.append(cells)
    return _table(("network", "all nodes, ms", *kinds, "everything else"), rows)


def _convs() -> str:
    """The time of the fastest binary version by kind of conv, beside what its popcounts take at the ceiling."""
    rows = []
    for row in _networks(threads=1):
        best = _best(row, _ours(row))
        kinds = row["convs"][best]
        isa = records.binary_isa(row["machine"]["isa"])
        kernels = records.find("kernels", isa, 1, row["machine"]["cpu"])
        cells = [_conv_cells(sums, None if kind in UNLIMITED else kernels) for kind, sums in kinds.items()]
        others = sum(row["profiles"][best].values()) - sum(sums["milliseconds"] for sums in kinds.values())
        lines = [*zip(kinds, cells, strict=True), ("all other operators", ["", _ms(others), "", ""])]
        rows += [[NETWORKS[row["subject"]].title, kind, *line] for kind, line in lines]
    columns = ("network", "convs", "nodes", "ms", "popcounts alone, ms", "beside them, cycles per 16 outputs")
    return _table(columns, rows)


def _conv_cells(sums: dict[str, float], kernels: Row | None) -> list[str]:
    """Nodes, time, the time of the popcounts at the ceiling that `kernels` has, and the rest per 16 outputs; without
    `kernels` popcounts are no limit."""
    measured = [str(sums["nodes"]), _ms(sums["milliseconds"])]
    if kernels is None or not kernels["ceiling"]:
        return [*measured, "–", "–"]
    cycles = sums["milliseconds"] * kernels["ghz"] * 1e6
    counting = sums["macs"] / kernels["ceiling"]
    alone = counting / kernels["ghz"] / 1e6
    return [*measured, _ms(alone), f"{16 * (cycles - counting) / sums['outputs']:.1f}"]


def _ends() -> str:
    """What an int8 stem and classifier bring."""
    rows = []
    for row in _networks(threads=1):
        plain, ends = _time(row, "binary"), _time(row, "binary, int8 ends")
        if plain and ends:
            size = [f"{row['bytes'][name] / 1e6:.1f} MB" for name in ("binary", "binary, int8 ends")]
            rows.append([NETWORKS[row["subject"]].title, _ms(plain), _ms(ends), f"{plain / ends:.2f}x", *size])
    return _table(("network", "float ends, ms", "int8 ends, ms", "gain", "file", "file"), rows)


def _peer_networks() -> str:
    """Whole binary networks of other engines."""
    rows = []
    for cpu, name in itertools.product(records.cpus("peers"), RIVALS):
        row = records.find("peers", name, 1, cpu)
        if row is not None:
            for contender, found in row["contenders"].items():
                ratio = _ratio(row, contender, "binary")
                shown = _ms(found.get("median")) if "median" in found else found["failed"]
                title = f"{NETWORKS[name].title} ({RIVALS[name]})" if " binary" in contender else NETWORKS[name].title
                rows.append([title, contender, shown, "–" if ratio is None else f"{ratio:.2f}x", _cpu(row)])
    return _table(("network", "contender", "ms", "our binary network is", "CPU"), rows)


def _peer_layers() -> str:
    """Single layers and what they cost inside a network, in microseconds."""
    rows = []
    for cpu, name in itertools.product(records.cpus("peers"), DENSE):
        row = records.find("peers", name, 1, cpu)
        if row is not None:
            cells = [
                name,
                *(_us(_time(row, contender)) for contender in (FLOAT, "OpenVINO binary", "Larq binary", "binary")),
            ]
            for contender in ("OpenVINO binary", "binary"):
                one, chain = _time(row, contender), _time(row, f"{contender} x{LINKS}")
                cells.append("–" if one is None or chain is None else _us((chain - one) / (LINKS - 1)))
            rows.append([*cells, _cpu(row)])
    columns = (
        "layer",
        "ORT float32 µs",
        "OpenVINO µs",
        "Larq µs",
        "ours µs",
        "OpenVINO, in a chain",
        "ours, in a chain",
        "CPU",
    )
    return _table(columns, rows)


def _kernels() -> str:
    """Multiply-accumulates per cycle of every layer on every instruction set, beside the ceiling and the limits."""
    lines = []
    for row in records.read("kernels"):
        title = f"`{row['subject']}`, {row['ghz']:.2f} GHz, {row['machine']['cpu']}"
        ceiling = f"ceiling {row['ceiling']:.0f} MAC/cycle" if row["ceiling"] else "no ceiling measured"
        limits = ", ".join(f"{limit:.0f} at K = {k}" for k, limit in (row.get("limits") or {}).items())
        lines += [f"{title}; {ceiling}{f'; a loop with its epilogue {limits}' if limits else ''}:", ""]
        cells = [
            [found["layer"], *(f"{found[name]:.0f}" for name in ("bits_us", "full_us", "half_us")), *_speeds(found)]
            for found in row["layers"]
        ]
        columns = ("layer", "bits µs", "all, float32 µs", "all, float16 µs", "bits, MAC/cycle", "all, MAC/cycle")
        lines += [_table(columns, cells), ""]
    return "\n".join(lines).rstrip()


def _speeds(layer: dict[str, Any]) -> list[str]:
    """MAC/cycle with bits alone and with everything, and their shares of the ceiling."""
    speeds = (layer["bits_mac_per_cycle"], layer["full_mac_per_cycle"])
    ceiling = layer["ceiling"]
    return [f"{speed:.0f} ({speed / ceiling:.0%})" if ceiling else f"{speed:.0f}" for speed in speeds]


def _recipes() -> str:
    """Every recipe's latency against that of `el`, one thread, by CPU; times and nodes of the main one."""
    found = [records.find("recipes", "resnet18", 1, cpu) for cpu in records.cpus("recipes")]
    row, *others = [each for each in found if each is not None]
    names = sorted((name for name in row["contenders"] if name != FLOAT), key=lambda name: _time(row, name) or 0.0)
    rows = []
    for name in (*names, FLOAT):
        size = f"{row['bytes'][name] / 1e6:.1f} MB"
        ratios = [f"{_ratio(each, name, 'el') or 0:.2f}x" for each in (row, *others)]
        rows.append(
            [f"`{name}`" if name != FLOAT else name, _ms(_time(row, name)), str(row["nodes"][name]), size, *ratios]
        )
    columns = [f"against `el`, {_cpu(each)}, `{each['source']}`" for each in (row, *others)]
    return _table(("recipe", "ms", "nodes", "file", *columns), rows)


def _us(milliseconds: float | None) -> str:
    return "–" if milliseconds is None else f"{1000 * milliseconds:.0f}"


PARTS: dict[str, Callable[[], Any]] = {
    "machines": _machines,
    "latency": _latency,
    "targets": _targets,
    "linear": _linear,
    "threads": _threads,
    "memory": _memory,
    "profile": _profile,
    "convs": _convs,
    "ends": _ends,
    "peer_networks": _peer_networks,
    "peer_layers": _peer_layers,
    "kernels": _kernels,
    "recipes": _recipes,
}


if __name__ == "__main__":
    main()
