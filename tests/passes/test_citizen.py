"""What a converted module must go on doing like any other module."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import UsageError
from binarize.nn import BinaryConv2d, RPReLU
from tests.models import EveryConv, randomized
from tests.passes.test_capture import Body

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=[EveryConv, Body], ids=["one region", "several regions"])
def module(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    yield randomized(binarize.apply(request.param(), X)).eval()


def test_copies_pickles_and_state_dicts_compute_the_same(module: nn.Module, tmp_path: Path) -> None:
    expected = module(X)
    torch.save(module, tmp_path / "m.pt")
    loaded = torch.load(tmp_path / "m.pt", weights_only=False)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert type(twin).__name__ == type(module).__name__ and twin is not module
        torch.testing.assert_close(twin(X), expected, rtol=0, atol=0)
        assert [d.layer for d in twin.report.decisions] == [d.layer for d in module.report.decisions]
        assert set(twin.state_dict()) == set(module.state_dict())
        twin.train()(X).sum().backward()
    assert all(p.grad is None for p in module.parameters())
    fresh = binarize.apply(EveryConv() if isinstance(module, torch.fx.GraphModule) else Body(), X).eval()
    fresh.load_state_dict(module.state_dict())
    torch.testing.assert_close(fresh(X), expected, rtol=0, atol=0)


def test_what_only_trains_survives_copies() -> None:
    class Idle(EveryConv):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)

    module = binarize.apply(Idle(), X)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert "unused.weight" in twin.state_dict()


def test_modes_device_dtype_and_frozen_parameters_stay() -> None:
    model = EveryConv().double().train()
    model.basic.eval()
    model.odd.requires_grad_(False)
    module = binarize.apply(model, X.double())
    modes = [module.get_submodule(path).training for path in ("", "stem", "basic.0.conv1", "basic.0.conv1_link")]
    assert modes == [True, True, False, False]
    assert {p.dtype for p in module.parameters()} == {torch.float64}
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert {"odd.weight", "odd.bias"} <= frozen and "stem.0.weight" not in frozen
    assert module(X.double()).dtype == torch.float64


def test_hooks_stay_and_run_once() -> None:
    model, seen = EveryConv().eval(), []
    for path in ("", "basic.0", "bottleneck.body.0", "inverted"):
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: seen.append(path))
    module = binarize.apply(model, X)
    seen.clear()
    module(X)
    assert seen == ["basic.0", "bottleneck.body.0", "inverted", ""]


def test_twice_is_an_error_and_inplace_changes_the_model_itself() -> None:
    model = EveryConv()
    names = set(model.state_dict())
    untouched = binarize.apply(model, X)
    assert type(model) is EveryConv and untouched is not model
    assert binarize.apply(model, X, inplace=True) is model
    assert names <= set(model.state_dict()) and model.report.binarized  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="already binarized"):
        binarize.apply(model, X)


def test_torch_export(module: nn.Module) -> None:
    if not isinstance(module, torch.fx.GraphModule):
        pytest.skip("its own code looks at values")
    program = torch.export.export(module, (X,))
    torch.testing.assert_close(program.module()(X), module(X))


def test_mixed_precision_trains(module: nn.Module) -> None:
    module.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(X).float().square().mean()
    loss.backward()
    assert torch.isfinite(loss) and all(p.dtype == torch.float32 for p in module.parameters())
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


@pytest.mark.slow
def test_torch_compile(module: nn.Module) -> None:
    compiled = torch.compile(module, backend="aot_eager")
    torch.testing.assert_close(compiled(X), module(X))
    compiled(X).sum().backward()


def test_distributed_data_parallel() -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        module = nn.parallel.DistributedDataParallel(binarize.apply(EveryConv(), X).train())
        module(X).square().sum().backward()
        assert all(p.grad is not None for p in module.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_odd_sizes_and_other_batches(module: nn.Module) -> None:
    y: Tensor = module(torch.randn(3, 3, 19, 23))
    assert len(y) == 3


def test_lists_of_layers_keep_their_indices() -> None:
    """Code around a net says `model.layer1[0]`; what surgery put between the layers does not count."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    model.layer1 = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    module = binarize.apply(model.eval(), torch.randn(2, 3, 12, 12))
    for found in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        layers = found.layer1
        assert len(layers) == 4 and [type(layers[i]) for i in (0, -2)] == [BinaryConv2d, BinaryConv2d]
        assert layers[0] is dict(found.named_modules())["layer1.0"]
        assert isinstance(layers[1], RPReLU) and list(layers)[2:] == layers[2:]
        assert isinstance(found.head[-1], nn.Linear)
        with pytest.raises(IndexError):
            layers[4]
