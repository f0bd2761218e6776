"""What a model, or the files that its weights came in, say of preprocessing.

Certain is what was said together with these very weights: by the module itself, by the JSON beside them, or by the
library that released the file, known by its hash. An architecture's usual preprocessing is a hint and nothing more,
because whoever trained the weights may have had another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from binarize.example_inputs import BATCH, channels_of, evaluate, first_that_runs, random_tensor
from binarize.preprocessing import DEFAULT, Preprocessing, options_for

_WEIGHTS_OF_A_FOLDER = frozenset(
    {"model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"}
)
"""What the weights are called in a folder that holds one model and its configuration."""

_MAX_JSON_BYTES = 4 << 20  # labels of 22,000 classes take one
_RELEASE_HASH = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")
_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, a file format by now
_CONVNEXT_CROPS_BELOW = 384  # its image processor, the only one with a crop_pct
_SIZES_TO_TRY = (64, 32, 224)


def stated_by(model: nn.Module) -> Preprocessing:
    """What `model` itself says: by a normalisation inside, or by a `pretrained_cfg` as timm's models have it.

    Known is only what holds for images as the model's own input takes them; what a part says is a hint.
    """
    own = getattr(model, "pretrained_cfg", None)  # an empty one says that nothing is known
    cfg = _mapping(getattr(model, "default_cfg", None) if own is None else own)
    tag = ".".join(str(cfg[key]) for key in ("architecture", "tag") if isinstance(cfg.get(key), str) and cfg[key])
    source = cfg.get("stated_by") or f"pretrained_cfg{f' of {tag}' if tag else ''}"
    said = Preprocessing.from_timm(cfg, str(source)) if cfg else Preprocessing()
    if isinstance(hints := cfg.get("hints"), list):  # of `state_on`
        said = said.hinted(*map(str, hints))
    found = _normalises_itself(model).over(said)
    return found.hinted(*_hints_of_parts(model)) if found.mean is None else found


def state_on(module: nn.Module, found: Preprocessing, *, own: bool) -> None:
    """Leave `found` on `module`, as the `pretrained_cfg` that `stated_by` reads.

    Args:
        own: whether the module came out of the file with its attributes. Else its `pretrained_cfg` is its builder's,
            who did not see these weights, and loses what it says of preprocessing.
    """
    known = found.to_timm()
    if known:
        known["stated_by"] = " and ".join(dict.fromkeys(found.sources.values()))
    if found.hints:
        known["hints"] = list(found.hints)
    builders = not own and any(hasattr(module, name) for name in ("pretrained_cfg", "default_cfg"))
    if known or builders:
        before = _mapping(getattr(module, "pretrained_cfg", None))
        kept = {key: value for key, value in before.items() if own or key not in _TIMM_KEYS}
        # A plain dict, so that the module can be pickled and read where this package is not.
        module.pretrained_cfg = {**kept, **known}  # type: ignore[assignment]


_TIMM_KEYS = frozenset({"mean", "std", "input_size", "crop_pct", "crop_mode", "interpolation"})


def stated_beside(file: Path, arch: str | None, module: nn.Module) -> Preprocessing:
    """What is known of the weights in `file`, and hints of what may be.

    Args:
        arch: the architecture's spelling; None where the file holds the module itself.
        module: with those weights.
    """
    beside = _from_folder(file)
    released = Preprocessing() if beside.mean is not None or arch is None else _from_release(file, arch, module)
    found = beside.over(released)
    if found.mean is not None or arch is None:
        return found
    return found.hinted(*_hint_of_library(arch, module))


# --- the module itself


def _mapping(cfg: Any) -> Mapping[str, Any]:
    """A configuration that is a mapping or a dataclass, else nothing."""
    if isinstance(cfg, Mapping):
        return cfg
    is_data = dataclasses.is_dataclass(cfg) and not isinstance(cfg, type)
    return {f.name: getattr(cfg, f.name, None) for f in dataclasses.fields(cfg)} if is_data else {}


def _normalises_itself(model: nn.Module) -> Preprocessing:
    """Pixels in [0, 1] where a layer that gets the image itself is found to compute `(x - mean) / std`."""
    if type(model).__module__.startswith("torchvision.models.") and getattr(model, "transform_input", None) is True:
        return Preprocessing.said("its transform_input", mean=DEFAULT.mean, std=DEFAULT.std)
    candidates = dict(_with_mean_and_std(model))
    if not candidates:
        return Preprocessing()
    image, names = Tensor(), []

    def look(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not (args and isinstance(args[0], Tensor) and isinstance(output, Tensor)):
            return
        x, (name, mean, std) = args[0], candidates[module]
        same = x.data_ptr() == image.data_ptr() and x.shape == image.shape == output.shape
        if same and torch.allclose(output, (x - mean.to(x)) / std.to(x), rtol=1e-2, atol=1e-2):
            names.append(name)

    def attempt(model: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal image
        image = inputs[0]
        evaluate(model, inputs)

    handles = [module.register_forward_hook(look) for module in candidates]
    try:
        channels = channels_of(model)
        first_that_runs(model, ((random_tensor(model, BATCH, channels, s, s),) for s in _SIZES_TO_TRY), attempt)
    finally:
        for handle in handles:
            handle.remove()
    if names:
        return Preprocessing.said(f"its layer {names[0]!r}, which normalises", mean=0.0, std=1.0)
    name = next(iter(candidates.values()))[0] or type(model).__name__
    way = options_for({"mean": (0.0,), "std": (1.0,)})
    return Preprocessing(
        hints=(f"{name!r} has a mean and std of its own: if it normalises the image, images need none before ({way}).",)
    )


def _with_mean_and_std(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, Tensor, Tensor]]]:
    """Modules that may normalise images in [0, 1], each with its name, mean and std as [C, 1, 1]."""
    for name, module in model.named_modules():
        mean, std = (_channels(module, key) for key in ("mean", "std"))
        if mean is None or std is None or not 0 <= float(mean.min()) <= float(mean.max()) <= 1:
            continue
        if bool(mean.any()) or bool((std != 1).any()):  # else anything that passes the image on would pass for one
            yield module, (name, mean, std)


def _channels(module: nn.Module, key: str) -> Tensor | None:
    """One number or three that `module` keeps under `key`, as [C, 1, 1]; no property is called."""
    places = (vars(module), vars(module).get("_buffers", {}), vars(module).get("_parameters", {}))
    value = next((place[key] for place in places if key in place), None)
    if isinstance(value, int | float | list | tuple):
        try:
            value = torch.tensor(value, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            return None
    if not isinstance(value, Tensor) or value.numel() not in (1, 3) or value.is_meta:
        return None
    return value.detach().float().reshape(-1, 1, 1)


def _hints_of_parts(model: nn.Module) -> list[str]:
    """What parts of `model` with a `pretrained_cfg` say, if that is not the default anyway."""
    for name, module in model.named_modules():
        if name and (cfg := _mapping(vars(module).get("pretrained_cfg"))):
            said = Preprocessing.from_timm(cfg, name)
            if said.differing(DEFAULT):
                return [f"Its part {name!r} says how it wants images; if they reach it unchanged: {said.as_options()}."]
    return []


# --- the file and what lies beside it


def _from_folder(file: Path) -> Preprocessing:
    """What `preprocessor_config.json` or timm's `config.json` beside the weights says."""
    found = Preprocessing()
    for name, read in (("preprocessor_config.json", _hugging_face), ("config.json", _timm_config)):
        path = file.parent / name
        try:
            if path.is_file():
                found = found.over(read(_json(path), name))
        except (OSError, ValueError, RecursionError) as error:
            found = found.hinted(f"{name} beside the weights cannot be read ({str(error)[:80]}) and is left aside.")
    if file.name in _WEIGHTS_OF_A_FOLDER or not found.sources:
        return found
    if not found.differing(DEFAULT):
        return Preprocessing()
    # Other weights may lie there, too.
    names = " and ".join(dict.fromkeys(found.sources.values()))
    return Preprocessing(
        hints=(f"{names} beside {file.name} may be about other weights; if about these, {found.as_options()}.",)
    )


def _json(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as stream:
        content = stream.read(_MAX_JSON_BYTES + 1)
    if len(content) > _MAX_JSON_BYTES:
        raise ValueError(f"more than {_MAX_JSON_BYTES >> 20} MB")
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def _timm_config(values: Mapping[str, Any], source: str) -> Preprocessing:
    """Of a model on a hub: the `pretrained_cfg` inside, in old files the file itself; nothing in anyone else's."""
    inside = values.get("pretrained_cfg", values)
    if not isinstance(inside, dict) or not {"mean", "std", "input_size"} <= inside.keys():
        return Preprocessing()
    return Preprocessing.from_timm(inside, source)


def _hugging_face(values: Mapping[str, Any], source: str) -> Preprocessing:
    """What an image processor's settings come to here."""
    hints = []
    mean, std = values.get("image_mean"), values.get("image_std")
    factor = values.get("rescale_factor", 1 / 255)
    from_zero_to_one = values.get("do_rescale", True) is True and _near(factor, 1 / 255)
    if values.get("do_flip_channel_order") is True:
        hints.append(f"{source} says that the model takes BGR, and images are RGB here: swap its stem's channels.")
    if values.get("do_normalize") is False:
        mean, std = 0.0, 1.0
    if not from_zero_to_one and mean is not None:
        hints.append(f"{source} brings pixels to another range than [0, 1], so that its mean and std are left aside.")
        mean = std = None
    resample = values.get("resample")
    interpolation = _RESAMPLING.get(resample, f"number {resample}") if isinstance(resample, int) else None
    size, crop_pct, squashed = _hugging_face_size(values)
    if squashed:
        hints.append(f"{source} scales images without keeping their proportions; here they are cropped instead.")
    return Preprocessing.said(
        source, hints=tuple(hints), mean=mean, std=std, size=size, crop_pct=crop_pct, interpolation=interpolation
    )


def _hugging_face_size(values: Mapping[str, Any]) -> tuple[tuple[Any, Any] | None, float | None, bool]:
    """Rows and columns of the input, their share of the scaled image, and whether that loses its proportions."""
    scaled = values.get("size") if values.get("do_resize", True) is True else None
    shortest = scaled.get("shortest_edge") if isinstance(scaled, dict) else scaled
    exact = _rows_and_columns(scaled)
    cropped = _rows_and_columns(values.get("crop_size"))
    if cropped is None and isinstance(edge := values.get("crop_size"), int):
        cropped = (edge, edge)
    if values.get("do_center_crop", cropped is not None) is True and cropped is not None:
        side = shortest if shortest is not None else (exact or (None,))[0]
        return cropped, _share(cropped[0], side), exact is not None
    if isinstance(shortest, int) and (share := values.get("crop_pct")) is not None:
        whole = shortest >= _CONVNEXT_CROPS_BELOW
        return (shortest, shortest), 1.0 if whole else share, whole
    return exact, None if exact is None else 1.0, exact is not None


def _rows_and_columns(size: Any) -> tuple[Any, Any] | None:
    return (size["height"], size["width"]) if isinstance(size, dict) and {"height", "width"} <= size.keys() else None


def _share(side: Any, scaled: Any) -> float | None:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in (side, scaled))
    return side / scaled if numbers else None


def _near(value: Any, wanted: float) -> bool:
    return isinstance(value, int | float) and math.isclose(value, wanted, rel_tol=1e-3)


# --- the libraries' own weights


def _from_release(file: Path, arch: str, module: nn.Module) -> Preprocessing:
    """What goes with the weights that torchvision or timm released as this very file, or that `arch` names by a tag."""
    releases = list(_releases(arch, module))
    if any(release.digest for release in releases):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        for release in releases:
            if release.digest and digest.startswith(release.digest):
                return release.preprocessing
    named = arch.removeprefix("timm:")
    return next((r.preprocessing for r in releases if "." in named and r.name == named), Preprocessing())


def _hint_of_library(arch: str, module: nn.Module) -> list[str]:
    """How the library's own weights would have it, where that is not the default."""
    first = next(_releases(arch, module), None)
    if first is None:
        return []
    own = first.preprocessing
    usual = dataclasses.replace(DEFAULT, size=(224, 224), crop_pct=None, interpolation=None)
    if not (differing := own.differing(usual)):
        return []
    return [f"If these are the weights released as {first.name}: {options_for(differing)}."]


@dataclasses.dataclass(frozen=True)
class _Release:
    """Weights that a library offers: their name, the beginning of the file's SHA-256 if known, and what they take."""

    name: str
    digest: str
    preprocessing: Preprocessing


def _releases(arch: str, module: nn.Module) -> Iterator[_Release]:
    """Of a library's architecture, the weights that it gives by default first. Nothing is downloaded."""
    library, _, name = arch.partition(":")
    if library == "torchvision":
        yield from _torchvision_releases(name, module)
    elif library == "timm":
        yield from _timm_releases(name)


def _torchvision_releases(name: str, module: nn.Module) -> Iterator[_Release]:
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights(name)
    default = weights.DEFAULT if len(weights) else None
    for each in sorted(weights, key=lambda w: w is not default):
        preset = each.transforms()
        sides = [getattr(preset, key, None) for key in ("crop_size", "resize_size")]
        if type(preset).__name__ != "ImageClassification" or not all(s and len(s) == 1 for s in sides):
            continue  # boxes, clips and the like
        (crop,), (scaled,) = sides  # type: ignore[misc]
        mean, std = preset.mean, preset.std
        if getattr(module, "transform_input", None) is False:  # what its builder switches on for these weights
            mean = std = 0.5
        said = Preprocessing.said(
            f"torchvision's {each}",
            mean=list(mean) if isinstance(mean, tuple) else mean,
            std=list(std) if isinstance(std, tuple) else std,
            size=(crop, crop),
            crop_pct=crop / scaled,
            interpolation=preset.interpolation.value,
        )
        yield _Release(str(each), _digest_in(each.url), said)


def _timm_releases(name: str) -> Iterator[_Release]:
    from timm import models

    known: Mapping[str, Any] = getattr(models, "get_arch_pretrained_cfgs", lambda _: {})(name.partition(".")[0])
    for tagged, cfg in known.items():
        values = _mapping(cfg)
        said = Preprocessing.from_timm(values, f"timm's {tagged}")
        yield _Release(tagged, _digest_in(values.get("url")), said)


def _digest_in(url: Any) -> str:
    """The hash that a released file's name ends with."""
    found = _RELEASE_HASH.search(url) if isinstance(url, str) else None
    return found[1] if found else ""
