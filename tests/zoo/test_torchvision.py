"""Models of torchvision's families: what is decided about each of their convs, and some of them to the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from binarize import api
from binarize.config import Config
from binarize.zoo import build_small, entries, send
from tests.golden_decisions import check_decisions

# A shallow one of each family that has goldens; to add one: name it here and run with --regen-goldens.
GOLDENS = (
    "alexnet",
    "convnext_tiny",
    "deeplabv3_mobilenet_v3_large",
    "densenet121",
    "efficientnet_b0",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fcn_resnet50",
    "fcos_resnet50_fpn",
    "googlenet",
    "inception_v3",
    "keypointrcnn_resnet50_fpn",
    "lraspp_mobilenet_v3_large",
)
# One of each kind of block, small; the other families run on a schedule (.ci/zoo_nightly).
TO_THE_END = (
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "lraspp_mobilenet_v3_large",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDENS)
def test_decisions(name: str, request: pytest.FixtureRequest) -> None:
    """Surgery without weights; a change of any decision is a diff of tests/goldens to review."""
    (entry,) = entries(["torchvision"], models=[name])
    model, inputs = build_small(entry, hollow=True)
    report = api.inspect(model, Config(), inputs)
    family = f"torchvision/{entry.family}"
    check_decisions(family, entry.name, report, regenerate=request.config.getoption("--regen-goldens"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TO_THE_END)
def test_one_of_each_family_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    (entry,) = entries(["torchvision"], models=[name])
    outcome = send(entry, "run", tmp_path)
    assert outcome.verdict == "equal"
    assert outcome.worst is not None and outcome.worst <= 1
    assert outcome.mac_share > 0.6
