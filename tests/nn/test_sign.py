"""The strict sign and its stand-in gradients."""

import math

import pytest
import torch

from binarize.nn.sign import activation_sign, hard_sign


def test_sign_is_strict_and_has_no_third_value():
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-30, math.inf, -math.inf, math.nan])
    assert hard_sign(x).tolist() == [-1, -1, -1, 1, 1, -1, -1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("approx", [0, 0, 1, 2, 1, 0, 0]), ("clip", [0, 1, 1, 1, 1, 1, 0])],
)
def test_gradients(name, expected):
    x = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], requires_grad=True)
    activation_sign(x, name).sum().backward()
    assert x.grad.tolist() == expected


def test_gradients_survive_compilation():
    """Torch 2.11 lost them all, silently, for a sign written with `where` of two numbers."""
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5], requires_grad=True)
    for gradient, expected in (("approx", [0, 1, 1, 0]), ("clip", [0, 1, 1, 0])):
        compiled = torch.compile(lambda x, gradient=gradient: activation_sign(x, gradient).sum(), backend="aot_eager")
        compiled(x).backward()
        assert x.grad.tolist() == expected
        x.grad = None
