"""ONNX files as sessions with settled threads, and inputs made up for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from binarize.errors import UnsupportedModelError, UsageError
from binarize.runtime import InferenceSession

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def open_session(path: str | Path, threads: int = 0, profile: Path | None = None) -> InferenceSession:
    """A session for the ONNX file at `path`, binary or not, on `threads` threads (0: all cores).

    Its threads stop spinning when a run ends, so that sessions timed in turns do not disturb each other. With
    `profile` it records the time of every node in a file whose name begins so.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return InferenceSession(path, options)


def input_shape(session: Any, batch: int = 1) -> tuple[int, ...]:
    """The shape of the session's only input, with `batch` for a symbolic first dimension.

    Raises:
        UnsupportedModelError: several inputs, or another dimension that is not settled.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise UnsupportedModelError(f"the model has {len(inputs)} inputs; only one is supported here")
    return _settled(inputs[0], batch)


def image_shape(session: Any) -> tuple[int, int, int]:
    """Channels, height and width of the images that are the session's only input.

    Raises:
        UnsupportedModelError: it takes something else.
    """
    shape = input_shape(session)
    if len(shape) != 4:
        raise UnsupportedModelError(f"the model takes {list(session.get_inputs()[0].shape)}, not images [N, C, H, W]")
    return shape[1], shape[2], shape[3]


def float_type(item: Any) -> Any:
    """NumPy's type for an input of a session.

    Raises:
        UnsupportedModelError: it is not of floats.
    """
    if item.type not in _TYPES:
        raise UnsupportedModelError(f"the input {item.name!r} is a {item.type}, not a tensor of floats")
    return _TYPES[item.type]


def batch_of(session: Any, batch: int | None = None) -> int:
    """Images per run: what the file takes at a time if it says so, else `batch` or 1.

    Raises:
        UsageError: the file takes another number than `batch`.
    """
    shape = next((item.shape for item in session.get_inputs()), ())
    own = next((size for size in shape[:1] if isinstance(size, int)), None)
    if own is not None and batch not in (None, own):
        raise UsageError(f"the file takes {own} images at a time, not {batch}", hint=f"--batch {own}")
    return own or batch or 1


def random_feeds(session: Any, batch: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Normally distributed inputs for `session`, the same for the same `seed`.

    Raises:
        UnsupportedModelError: an input is not of floats, or its shape is not settled.
    """
    generator = np.random.default_rng(seed)
    feeds = {}
    for item in session.get_inputs():
        feeds[item.name] = generator.standard_normal(_settled(item, batch)).astype(float_type(item))
    return feeds


def _settled(item: Any, batch: int) -> tuple[int, ...]:
    shape = [batch if index == 0 and not isinstance(size, int) else size for index, size in enumerate(item.shape)]
    if not all(isinstance(size, int) for size in shape):
        raise UnsupportedModelError(
            f"the input {item.name!r} has the shape {list(item.shape)}; only its first size may be symbolic",
            hint="export the model with a fixed image size",
        )
    return tuple(shape)
