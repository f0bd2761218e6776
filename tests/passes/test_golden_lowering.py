"""Lowered graphs of known models: operators by number, and what each packed conv took in. Review their diff."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import binarize
from binarize.lowering import Lowered, lower
from binarize.passes.lower_tools import ARGUMENTS, Fused, item_of

FOLDER = Path(__file__).parents[1] / "goldens" / "lowering"


def describe(lowered: Lowered) -> dict[str, Any]:
    """The fused graph in words."""
    graph = lowered.fused.graph
    calls = [n for n in graph.nodes if n.op == "call_function" and getattr(n.target, "__name__", "") != "getitem"]
    names = Counter(str(n.target).removeprefix("aten.").rpartition(".")[0] for n in calls)
    return {
        "operators": dict(sorted(names.items())),
        "fused": [_line(Fused(n)) for n in calls if n.target in ARGUMENTS],
    }


def _line(fused: Fused) -> str:
    parts = [name for name in ("gate", "link", "residual") if fused.has(name) and not fused.absent(name)]
    parts += ["activation"] if fused.activated else []
    outputs = [name for index, name in enumerate(("y", "bits")) if item_of(fused.node, index) is not None]
    name = fused.node.meta.get("path", "activate")
    return f"{name}: {', '.join(parts) or 'nothing'} -> {', '.join(outputs)}"


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
        pytest.param("googlenet", marks=pytest.mark.slow),
    ],
)
def test_golden_lowering(name: str, request: pytest.FixtureRequest) -> None:
    import torchvision

    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    module = binarize.apply(torchvision.models.get_model(name, weights=None, **options), torch.zeros(2, 3, 64, 64))
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if key.endswith("threshold"):  # all different, as after training
                parameter.copy_(torch.randn(parameter.shape))
    found = describe(lower(module.eval(), (torch.zeros(2, 3, 64, 64),)))
    path = FOLDER / f"{name}.json"
    if request.config.getoption("--regen-goldens"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(path.read_text())
