"""The state of a training run on disk: one file, replaced atomically, read without unpickling code."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from binarize.errors import UsageError
from binarize.files import atomic_output


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain data) with the random generators' states to `path`."""
    random_state = random.getstate()
    full = {
        **state,
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all(),  # none without a GPU
        "python_rng": [random_state[0], list(random_state[1])],
    }
    with atomic_output(path) as temporary:
        torch.save(full, temporary)


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state at `path` with the generators put back; None if there is no file.

    Raises:
        UsageError: the file is damaged, or belongs to a run with another configuration, data, model or teacher.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["fingerprint"]
    except Exception as error:
        raise UsageError(
            f"the checkpoint is damaged or none of binarize ({type(error).__name__} while reading it)",
            layer=str(path),
            hint="pass --restart to begin anew, or delete it",
        ) from error
    if found != fingerprint:
        raise UsageError(
            "the checkpoint belongs to a run with another model, teacher, configuration or data",
            layer=str(path),
            hint="pass --restart to begin anew, or choose another --out; in Python, name another checkpoint",
        )
    torch.set_rng_state(state["torch_rng"])
    for device, generator in enumerate(state.get("cuda_rng", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, device)
    version, numbers = state["python_rng"]
    random.setstate((version, tuple(numbers), None))
    return state
