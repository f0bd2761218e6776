"""Guesses of what a model takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import UsageError
from binarize.example_inputs import channels_of, default_example_inputs, first_that_runs
from binarize.surgery import report_of


class SpaceToDepth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(x, 4)


@pytest.mark.parametrize(
    "model, shape",
    [
        (nn.Conv2d(3, 4, 3), (2, 3, 224, 224)),
        (nn.Conv2d(1, 4, 3), (2, 1, 224, 224)),
        (nn.Conv2d(12, 4, 3), (2, 12, 224, 224)),
        (nn.Sequential(SpaceToDepth(), nn.Conv2d(48, 4, 3)), (2, 3, 224, 224)),
        (nn.Conv1d(2, 4, 9), (2, 2, 1024)),
        (nn.Conv3d(3, 4, 3), (2, 3, 16, 112, 112)),
        (nn.Linear(3, 4), (2, 3, 224, 224)),
    ],
    ids=["rgb", "grey", "many channels", "pixels rearranged", "signal", "clip", "no conv"],
)
def test_what_the_first_conv_suggests(model: nn.Module, shape: tuple[int, ...]) -> None:
    (found,) = default_example_inputs(model)
    assert found.shape == shape
    assert channels_of(model) == shape[1]


def test_a_size_that_is_told_is_taken_if_a_conv_has_its_dimensions() -> None:
    signal = nn.Conv1d(2, 4, 9)
    assert default_example_inputs(signal, (2, 64))[0].shape == (2, 2, 64)
    with pytest.raises(UsageError, match="is not C,L") as caught:
        default_example_inputs(signal, (3, 64, 64))
    assert "1,16000" in str(caught.value.hint)
    with pytest.raises(UsageError, match="is not C,H,W"):
        default_example_inputs(nn.Conv2d(3, 4, 3), (3, 0, 64))


def test_trying_leaves_the_mode_and_tells_the_last_failure() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    good = (torch.zeros(2, 3, 8, 8),)
    inputs, why = first_that_runs(model, [(torch.zeros(2, 1, 8, 8),), good])
    assert inputs is good and "channels" in str(why) and model.training
    assert int(model[1].num_batches_tracked) == 0
    assert first_that_runs(model, [(torch.zeros(2, 1, 8, 8),)])[0] is None


def test_a_signal_net_and_a_clip_net_convert_without_being_told_a_size() -> None:
    signal = nn.Sequential(nn.Conv1d(1, 8, 9), nn.ReLU(), nn.Conv1d(8, 8, 9), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
                           nn.Linear(8, 2))  # fmt: skip
    clip = nn.Sequential(nn.Conv3d(3, 8, 3, stride=4), nn.ReLU(), nn.Conv3d(8, 8, 3), nn.AdaptiveAvgPool3d(1),
                         nn.Flatten(), nn.Linear(8, 2))  # fmt: skip
    for model in (signal, clip):
        assert [d.layer for d in report_of(binarize.apply(model)).binarized] == ["2"]
