"""Models of torchvision's families: what is decided about each of their convs, and some of them to the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from binarize import api
from binarize.config import Config
from binarize.zoo import Entry, build_small, entries, send
from tests.golden_decisions import check_decisions

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
@pytest.mark.parametrize("entry", entries(["torchvision"]), ids=lambda entry: entry.name)
def test_decisions(entry: Entry, request: pytest.FixtureRequest) -> None:
    """Surgery on all 109, without weights; a change of any decision is a diff of tests/goldens to review."""
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
