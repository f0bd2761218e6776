"""timm's own conv and norm classes, in the models that they come in."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import binarize
from binarize.nn import BinaryConv
from binarize.zoo import Entry, build_small, entries, send

pytest.importorskip("timm")

# A model, the class of its convs and that of its norms: padding by the input's size, weights that are standardised on
# the way, norms with an activation inside.
TO_THE_END = {
    "tf_mobilenetv3_small_minimal_100": ("Conv2dSame", "BatchNormAct2d"),
    "resnetv2_18": ("Conv2d", "BatchNormAct2d"),
    "nf_resnet26": ("ScaledStdConv2d", "Identity"),
    "resnetv2_50x1_bit": ("StdConv2d", "GroupNormAct"),
}


def entry_of(name: str) -> Entry:
    (entry,) = entries(["timm"], models=[name])
    return entry


@pytest.mark.parametrize("name", TO_THE_END)
def test_own_classes_are_seen_and_binarized(name: str) -> None:
    conv, norm = TO_THE_END[name]
    model, inputs = build_small(entry_of(name), hollow=True)
    classes = {type(module).__name__ for module in model.modules()}
    assert {conv, norm} <= classes
    assert sum(type(m).__name__ == conv for m in model.modules() if isinstance(m, nn.Conv2d)) > 2
    module = binarize.apply(model, inputs)
    left = [n for n, m in module.named_modules() if isinstance(m, nn.Conv2d) and not isinstance(m, BinaryConv)]
    kept = {decision.layer for decision in module.report.kept}
    assert set(left) == kept and len(kept) <= 2 < sum(isinstance(m, BinaryConv) for m in module.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_minimal_100", "nf_resnet26"])
def test_they_go_the_whole_way(name: str, tmp_path: Path) -> None:
    outcome = send(entry_of(name), "run", tmp_path)
    assert outcome.verdict == "equal" and outcome.untraced == []
    assert outcome.worst is not None and outcome.worst <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["csatv2", "tresnet_m"])
def test_models_whose_first_conv_does_not_see_the_image(name: str, tmp_path: Path) -> None:
    outcome = send(entry_of(name), "train", tmp_path)
    assert outcome.verdict == "train" and outcome.inputs == "2x3x64x64"
