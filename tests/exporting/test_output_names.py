"""What a model returns has its own names in the file."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.utils._pytree import register_pytree_node, tree_leaves

import binarize
from binarize.bench.float_onnx import float_onnx


class NoKeys:
    """Registered without names for what it holds."""

    def __init__(self, first, second):
        self.values = [first, second]


register_pytree_node(NoKeys, lambda own: (own.values, None), lambda values, _: NoKeys(*values))


class Net(nn.Module):
    """A binary conv between two others, and what `give` makes of the image and the maps."""

    def __init__(self, give):
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.give = nn.Conv2d(8, 4, 1), give
        self.register_buffer("constant", torch.arange(3.0))

    def forward(self, x):
        y = torch.relu(self.inner(torch.relu(self.first(x))))
        return self.give(x, y, self.last(y), self.constant)


GIVEN = {
    "tensor": (lambda x, y, z, c: z, ["output"]),
    "tuple": (lambda x, y, z, c: (z, y), ["output_0", "output_1"]),
    "dict": (lambda x, y, z, c: {"scores": z, "maps": [y, y.mean((2, 3))]}, ["scores", "maps_0", "maps_1"]),
    "name of the input": (lambda x, y, z, c: {"input": z}, ["input_output"]),
    "names of values inside": (lambda x, y, z, c: {"relu": z, "conv2d_1": y * 2}, ["relu", "conv2d_1"]),
    "the input": (lambda x, y, z, c: {"image": x, "out": z}, ["image", "out"]),
    "one value twice": (lambda x, y, z, c: {"a": z, "b": z}, ["a", "b"]),
    "a constant": (lambda x, y, z, c: {"classes": c, "out": z}, ["classes", "out"]),
    "no tensor": (lambda x, y, z, c: {"count": 4, "out": z, "none": None, "y": y}, ["out", "y"]),
    "one name twice": (lambda x, y, z, c: {"a": [z], "a_0": y}, ["output_0", "output_1"]),
    "no keys": (lambda x, y, z, c: NoKeys(z, y), ["output_0", "output_1"]),
    "numbers": (lambda x, y, z, c: {0: z, 1: y}, ["output_0", "output_1"]),
}


@pytest.mark.parametrize("what", GIVEN)
def test_outputs_have_the_names_of_what_the_model_returns(what, tmp_path):
    give, names = GIVEN[what]
    torch.manual_seed(0)
    model, x = Net(give).eval(), torch.randn(2, 3, 8, 8)
    path = tmp_path / "net.onnx"
    module = binarize.apply(model, example_inputs=x).eval()
    binarize.export(module, path)
    assert [output.name for output in onnx.load(path).graph.output] == names
    got = binarize.InferenceSession(path).run(None, {"input": x.numpy()})
    expected = [leaf for leaf in tree_leaves(module(x)) if isinstance(leaf, torch.Tensor)]
    for value, reference in zip(got, expected, strict=True):
        np.testing.assert_allclose(value, reference.detach().numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("what", ["tensor", "dict", "one value twice"])
def test_the_float_file_has_the_same_names(what, tmp_path):
    give, names = GIVEN[what]
    float_onnx(Net(give), tmp_path / "float.onnx", (torch.randn(2, 3, 8, 8),))
    assert [output.name for output in onnx.load(tmp_path / "float.onnx").graph.output] == names
