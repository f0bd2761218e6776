"""Models of torchvision's families: what is decided about each of their convs, and some of them to the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from binarize import api
from binarize.config import Config
from binarize.zoo import Entry, build_small, entries, send
from tests.golden_decisions import check_decisions

# Where convolutions are few: transformers, which have a stem alone (-1: none is binary), or one and short kernels.
LEAST_SHARE = {"vision_transformer": -1, "swin_transformer": -1, "video.swin_transformer": -1, "video.mvit": 0.2}

# Five that take one to five minutes each, most of it in PyTorch's exporter, and a seventh of all tests together. Other
# families have what they have: detectors' heads (RetinaNet's and SSD's), convs of clips, attention.
ON_A_SCHEDULE = {"detection.keypoint_rcnn", "detection.fcos", "detection.ssdlite", "video.s3d", "video.mvit"}


@pytest.mark.slow
@pytest.mark.parametrize("entry", entries(["torchvision"]), ids=lambda entry: entry.name)
def test_decisions(entry: Entry, request: pytest.FixtureRequest) -> None:
    """Surgery on all 109, without weights; a change of any decision is a diff of tests/goldens to review."""
    model, inputs = build_small(entry, hollow=True)
    report = api.inspect(model, inputs, config=Config())
    family = f"torchvision/{entry.family}"
    check_decisions(family, entry.name, report, regenerate=request.config.getoption("--regen-goldens"))


def _on_each_run() -> list[Entry]:
    return [entry for entry in entries(["torchvision"], per_family=1) if entry.family not in ON_A_SCHEDULE]


@pytest.mark.slow
@pytest.mark.parametrize("entry", _on_each_run(), ids=lambda entry: entry.name)
def test_one_of_each_family_goes_the_whole_way(entry: Entry, tmp_path: Path) -> None:
    """The others run on a schedule (.ci/zoo_nightly)."""
    outcome = send(entry, "run", tmp_path)
    assert outcome.verdict == "equal"
    assert outcome.worst is not None and outcome.worst <= 1
    assert outcome.mac_share > LEAST_SHARE.get(entry.family, 0.6)
