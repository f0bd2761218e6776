"""Which room may import which, read from the source: also imports inside functions and for types only."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FOUNDATION = {"config", "errors", "files", "machine", "preprocessing", "progress"}
PARTS = {"nn", "recipes", "report", "example_inputs", "trees"} | FOUNDATION
STATIONS = {
    "assembly",
    "bench",
    "binary_file",
    "drawing",
    "exporting",
    "loading",
    "lowering",
    "passes",
    "surgery",
    "training",
}
"""The stations that `api` conducts."""

ALLOWED: dict[str, set[str]] = {
    "cli": {"binarize", "api", "runtime", "zoo"} | STATIONS | PARTS,
    "zoo": {"api", "runtime"} | STATIONS | PARTS,
    "binarize": {"api", "config", "report", "runtime"},
    "api": STATIONS | PARTS,
    "assembly": {"exporting", "loading", "lowering", "runtime"} | PARTS,
    "bench": {"exporting", "lowering", "runtime", "training"} | PARTS,
    "exporting": {"lowering", "passes", "runtime"} | PARTS,
    "binary_file": {"loading", "surgery"} | PARTS,
    "drawing": {"passes"} | PARTS,
    "lowering": {"passes"} | PARTS,
    "surgery": {"passes"} | PARTS,
    "training": {"passes"} | PARTS,
    "loading": PARTS,
    "passes": PARTS,
    "runtime": {"errors"},
    "example_inputs": {"errors", "nn", "trees"},
    "nn": FOUNDATION,
    "recipes": FOUNDATION,
    "report": FOUNDATION,
    "preprocessing": {"config", "errors"},
    "trees": {"errors"},
    "config": {"errors"},
    "files": {"errors"},
    "machine": set(),
    "progress": set(),
    "errors": set(),
}
"""What each room may import beside itself, the upper rooms first. `binarize` is the package's `__init__`."""


def rooms(root: Path) -> Iterator[tuple[str, Path]]:
    """Every Python file of the package under `root`, with its room."""
    for name in ("passes", "cli"):
        yield from ((name, path) for path in sorted((root / name).rglob("*.py")))
    package = root / "binarize"
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        if parts[0] != "native":
            yield ("binarize" if parts == ("__init__.py",) else parts[0].removesuffix(".py")), path


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything a module imports; relative imports come with their dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in ("importlib.import_module", "import_module", "__import__"):
                yield str(node.args[0].value)


def room_of(module: str) -> str | None:
    """The room that a dotted name leads to; None outside the package."""
    first, _, rest = module.partition(".")
    if first != "binarize":
        return None
    room = rest.partition(".")[0]
    return room if room in ALLOWED else "binarize"


def violations(root: Path) -> list[str]:
    """Every import that `ALLOWED` does not have, as `file: room -> room`."""
    found = []
    for room, path in rooms(root):
        name = path.relative_to(root)
        if room not in ALLOWED:
            found.append(f"{name}: the room {room} has no place in ALLOWED")
            continue
        for module in imported_modules(ast.parse(path.read_text(encoding="utf-8"))):
            target = room_of(module)
            if module.startswith("."):
                found.append(f"{name}: relative import {module}")
            elif target is not None and target != room and target not in ALLOWED[room]:
                found.append(f"{name}: {room} -> {target}")
    return found


def runtime_includes(folder: Path) -> list[str]:
    """`#include` lines below `folder` that lead to ONNX Runtime or to its adapter."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".h", ".cc", ".cpp", ".hpp", ".inc"}):
        for line in path.read_text(encoding="utf-8").splitlines():
            match = re.match(r"\s*#\s*include\s*[<\"]([^>\"]+)", line)
            if match and re.search(r"onnx|(^|/)ort(/|_|\.)", match[1], re.IGNORECASE):
                found.append(f"{path.relative_to(folder)}: {match[1]}")
    return found


def test_every_import_follows_an_arrow() -> None:
    assert len(list(rooms(ROOT))) > 50
    assert violations(ROOT) == []


def test_the_arrows_only_lead_down() -> None:
    above: set[str] = set()
    for room, below in ALLOWED.items():
        if room != "cli":  # the command line asks the package for its version
            assert below.isdisjoint(above | {room}), room
        above.add(room)
    assert all(below <= set(ALLOWED) for below in ALLOWED.values())


def test_every_room_exists() -> None:
    assert set(ALLOWED) == {room for room, _ in rooms(ROOT)}


@pytest.mark.parametrize("part", ["core", "isa"])
def test_kernels_know_nothing_of_onnx_runtime(part: str) -> None:
    folder = ROOT / "binarize" / "native" / part
    assert list(folder.rglob("*.h")) or list(folder.rglob("*.cc"))
    assert runtime_includes(folder) == []


@pytest.mark.parametrize(
    "place, line, arrow",
    [
        ("passes/bad.py", "def f():\n    from binarize.exporting import emit", "passes -> exporting"),
        ("passes/bad.py", "from binarize import training", "passes -> training"),
        ("passes/bad.py", "import binarize", "passes -> binarize"),
        ("passes/deep/bad.py", "import binarize.cli.app as app", "passes -> cli"),
        ("binarize/nn/bad.py", "from binarize.passes.base import Pass", "nn -> passes"),
        ("binarize/runtime/bad.py", "from binarize.config import Config", "runtime -> config"),
        ("binarize/report.py", "if True:\n    from binarize.api import load", "report -> api"),
        (
            "binarize/loading/bad.py",
            "import importlib\nimportlib.import_module('binarize.api')",
            "loading -> api",
        ),
        ("binarize/api.py", "from binarize.cli.output import Output", "api -> cli"),
        ("binarize/training/bad.py", "from . import data", "relative import"),
        ("binarize/attic/bad.py", "import torch", "attic has no place"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, place: str, line: str, arrow: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(f"import torch\nfrom binarize.errors import UsageError\n{line}\n")
    found = violations(tmp_path)
    assert len(found) == 1
    assert arrow in found[0]


def test_a_planted_include_is_found(tmp_path: Path) -> None:
    (tmp_path / "good.h").write_text('#include <cstdint>\n#include "core/sort_bits.h"\n// #include "ort/wrap.h"\n')
    assert runtime_includes(tmp_path) == []
    (tmp_path / "bad.cc").write_text('#include "core/run.h"\n# include "ort/wrap.h"\n#include <onnxruntime_c_api.h>\n')
    assert runtime_includes(tmp_path) == ["bad.cc: ort/wrap.h", "bad.cc: onnxruntime_c_api.h"]
