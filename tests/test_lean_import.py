"""Inference imports next to nothing, and the package's names lead where they say, whatever came before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "typer",
    "rich",
    "networkx",
    "accelerate",
    "pyarrow",
    "safetensors",
    "PIL",
    "matplotlib",
)
"""What `pip install binarize-nn` does not bring; the extra `convert` does."""

FORBID = f"""
import sys
HEAVY = {HEAVY!r}
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"forbidden: {{name}}", name=name)
sys.meta_path.insert(0, Forbid())
"""


def run(code: str, folder: Path) -> str:
    """What a fresh interpreter in `folder` prints when it runs `code`."""
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("name", ["InferenceSession", "Config", "Report", "__version__"])
def test_names_that_need_nothing_import_nothing(name: str, tmp_path: Path) -> None:
    code = f"import sys, binarize; binarize.{name}; print(sorted({set(HEAVY)!r} & set(sys.modules)))"
    assert run(code, tmp_path) == "[]"


def test_inference_works_where_nothing_else_is_installed(tmp_path: Path) -> None:
    code = f"{FORBID}\nimport binarize\nprint(binarize.InferenceSession.__name__, len(dir(binarize)))"
    assert run(code, tmp_path).startswith("InferenceSession")


def test_the_hook_above_really_forbids(tmp_path: Path) -> None:
    code = f"{FORBID}\ntry:\n    import torch\nexcept ModuleNotFoundError as error:\n    print(error)"
    assert run(code, tmp_path) == "forbidden: torch"


def test_all_names_resolve() -> None:
    import binarize

    for name in binarize.__all__:
        assert getattr(binarize, name) is not None
    assert set(binarize.__all__) <= set(dir(binarize))
    assert "__version__" in dir(binarize)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import binarize

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = binarize.nonsense
    assert not hasattr(binarize, "nonsense")


WALK = """
import importlib, pkgutil, types
import binarize
skipped = ("binarize.native", "binarize.loading.build_index", "binarize.runtime.libbinarize_ops")
# An editable install puts the repository itself on the package's path, for the sake of passes/ and cli/.
skipped += ("binarize.benchmarks", "binarize.binarize", "binarize.examples", "binarize.tests")
for module in pkgutil.walk_packages(binarize.__path__, "binarize."):
    if not module.name.startswith(skipped):
        importlib.import_module(module.name)
for name in ("passes.plan", "training.trainer", "exporting.emit", "bench.accuracy", "cli.app"):
    importlib.import_module("binarize." + name)
for name in binarize.__all__:
    value = getattr(binarize, name)
    print(name, callable(value) and not isinstance(value, types.ModuleType), value.__module__.split(".")[0])
"""


def test_no_module_hides_a_function(tmp_path: Path) -> None:
    """Importing a package `binarize.export` once put the package where the function `binarize.export` was."""
    import binarize

    lines = run(WALK, tmp_path).splitlines()
    assert lines == [f"{name} True binarize" for name in binarize.__all__]
