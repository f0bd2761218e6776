"""The smallest inputs that a model runs on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from binarize.errors import UsageError
from binarize.zoo.inputs import describe, smallest_inputs


class Auxiliary(nn.Module):
    """In training a second head needs maps of 20 x 20."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.aux = nn.Conv2d(3, 4, 3, stride=8), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return x.mean() + self.aux(x).mean() if self.training else x.mean()


def test_training_may_need_larger_images() -> None:
    model = Auxiliary().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert describe(smallest_inputs(model, "any")) == "2x3x160x160"
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_never_trains_gets_what_it_evaluates() -> None:
    class Frozen(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("for inference only")
            return super().forward(x)

    assert describe(smallest_inputs(Frozen(3, 4, 3).eval(), "any")) == "2x3x64x64"


def test_nothing_runs() -> None:
    with pytest.raises(UsageError, match="none of the inputs tried"):
        smallest_inputs(nn.Linear(7, 1), "any")
