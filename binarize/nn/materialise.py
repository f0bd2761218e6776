"""Weights that are computed from other tensors, such as weight and spectral norm's, as parameters of their own."""

from __future__ import annotations

import warnings

from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves, tree_map_only


def materialise(module: nn.Module) -> None:
    """Replace each tensor of `module` that a parametrization or a hook computes by a parameter with its value.

    A binary conv needs this: signs do not see the norm, and the latent weight is what the optimizer has to move.
    """
    training, module.training = module.training, False  # spectral norm changes its vectors in train mode
    try:
        if parametrize.is_parametrized(module):
            _leave_parametrizations(module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch deprecates the old spelling, which models have
            for hook in list(module._forward_pre_hooks.values()):
                if isinstance(hook, WeightNorm):
                    remove_weight_norm(module, hook.name)
                elif isinstance(hook, SpectralNorm):
                    remove_spectral_norm(module, hook.name)
    finally:
        module.training = training


def _leave_parametrizations(module: nn.Module) -> None:
    """What torch's `remove_parametrizations` does, which also takes the property off the class that copies share."""
    assert isinstance(module.parametrizations, nn.ModuleDict)
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    trained = {n: any(p.requires_grad for p in part.parameters()) for n, part in module.parametrizations.items()}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=trained[name]))


def let_go_of_history(model: nn.Module) -> None:
    """Detach tensors that a `forward` or a hook computed and left on `model`: torch cannot copy them otherwise."""
    for module in model.modules():
        kept = {name: value for name, value in vars(module).items() if isinstance(value, Tensor | list | tuple | dict)}
        for name, value in kept.items():
            if any(isinstance(leaf, Tensor) and leaf.grad_fn is not None for leaf in tree_leaves(value)):
                vars(module)[name] = tree_map_only(Tensor, Tensor.detach, value)
