"""Which models the zoo has, and how a part of them is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from binarize.errors import UsageError
from binarize.zoo import entries

CLASSIC = Path(__file__).parents[2] / "examples" / "classic"


def test_torchvision_is_all_there() -> None:
    found = entries()
    assert len(found) == 109
    families = {entry.family for entry in found}
    assert {"resnet", "detection.faster_rcnn", "segmentation.fcn", "video.resnet", "optical_flow.raft"} <= families


def test_globs_and_shards_divide_the_whole() -> None:
    assert {e.name for e in entries(families=["vgg"])} >= {"vgg11", "vgg19_bn"}
    assert [e.name for e in entries(families=["resnet", "vgg"], models=["*18", "vgg11*"])] == [
        "resnet18",
        "vgg11",
        "vgg11_bn",
    ]
    parts = [entries(shard=(i, 3)) for i in (1, 2, 3)]
    assert sorted(e.name for part in parts for e in part) == sorted(e.name for e in entries())


def test_the_shallowest_of_each_family() -> None:
    small = {e.family: e.name for e in entries(families=["resnet", "densenet", "efficientnet"], per_family=1)}
    assert small == {"resnet": "resnet18", "densenet": "densenet121", "efficientnet": "efficientnet_b0"}


def test_timm_families() -> None:
    pytest.importorskip("timm")
    found = entries(["timm"])
    assert len(found) > 900
    assert {"nfnet", "hrnet", "ghostnet", "regnet"} <= {entry.family for entry in found}
    assert not [entry for entry in found if entry.name.startswith("vit_tiny_patch16")]


def test_python_files_are_sources_and_are_not_run_for_their_list(tmp_path: Path) -> None:
    assert {e.family for e in entries([str(CLASSIC)])} == {
        "densenet", "dla", "dpn", "efficientnet", "preact_resnet", "regnet", "resnet", "senet", "shufflenet", "vgg",
    }  # fmt: skip
    file = tmp_path / "net.py"
    file.write_text("__all__ = ['net']\nraise SystemExit\n")
    assert [entry.spec for entry in entries([str(file)])] == [f"{file}:net"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"sources": ["keras"]}, "no source of models"),
        ({"families": ["resnte"]}, "no model's family matches 'resnte'"),
        ({"models": ["resnet19"]}, "no model's name matches"),
        ({"shard": (3, 2)}, "no part of a whole"),
    ],
)
def test_choices_that_are_not_there(arguments: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        entries(**arguments)


def test_files_without_a_list(tmp_path: Path) -> None:
    for content, words in {"def net(): ...": "no __all__", "def (": "cannot be parsed"}.items():
        (tmp_path / "net.py").write_text(content)
        with pytest.raises(UsageError, match=words):
            entries([str(tmp_path)])
