"""How images become what a model takes, as far as it is known, and who says so."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from binarize.config import Config
from binarize.errors import UsageError

SETTINGS = ("mean", "std", "crop_pct", "interpolation")
"""What of it is a key of the table [training]; the size of an input is an option, and a fact of the file."""

SMALL_IMAGE = 64
"""Inputs at most this wide and high are small: they are the whole image, scaled, so that two settings mean nothing."""

AUTO = "auto"
"""Of such a key: as the model says."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before a model sees it. None: not known.

    Attributes:
        mean, std: of pixels in [0, 1], per channel, or one for all.
        size: rows and columns of the model's input.
        crop_pct: the input's side over that of the scaled image whose middle it is, at most 1.
        interpolation: `bilinear` or `bicubic`.
        sources: who says it, for each attribute that is known.
        hints: what somebody says that cannot be taken over, one sentence each.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    hints: tuple[str, ...] = ()

    @classmethod
    def said(cls, source: str, *, hints: tuple[str, ...] = (), **values: Any) -> Preprocessing:
        """What one `source` says of the attributes in `values`; None is nothing, and a value of no use is a hint."""
        found, odd = {}, []
        for name, value in values.items():
            try:
                usable = None if value is None else _READERS[name](value)
            except (TypeError, ValueError, OverflowError, UsageError):
                usable = ()
            if isinstance(usable, tuple) and len(usable) not in _COUNTS.get(name, ()):
                odd.append(f"{source} says {name} {repr(value)[:60]}, which cannot be followed here.")
            elif usable is not None:
                found[name] = usable
        if ("mean" in found) != ("std" in found):  # half of a normalisation is another one
            odd += [f"{source} has no usable mean and std together, so neither is taken."]
            found = {name: value for name, value in found.items() if name not in ("mean", "std")}
        return cls(**found, sources=dict.fromkeys(found, source), hints=(*hints, *odd))

    @classmethod
    def configured(cls, config: Config, source: str = "configuration") -> Preprocessing:
        """What `config` says itself: its keys that are not `auto`."""
        own = {name: getattr(config.training, name) for name in SETTINGS}
        own = {name: value for name, value in own.items() if value != AUTO}
        return cls(**own, sources=dict.fromkeys(own, source))

    @classmethod
    def of(cls, config: Config) -> Preprocessing:
        """What images get under `config`: what it says, and the defaults."""
        return cls.configured(config).over(DEFAULT)

    @classmethod
    def from_timm(cls, values: Mapping[str, Any], source: str) -> Preprocessing:
        """What a `pretrained_cfg` of timm says, or a module of ours, which says it in the same words."""
        known, mode = {name: values.get(name) for name in SETTINGS}, values.get("crop_mode")
        hints = []
        if mode is not None and mode != "center":
            hints.append(f"{source} says crop_mode {repr(mode)[:30]}; the middle is cropped out instead.")
        return cls.said(source, hints=tuple(hints), size=values.get("input_size"), **known)

    def to_timm(self) -> dict[str, Any]:
        """As a `pretrained_cfg`, for `from_timm`."""
        known = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) is not None}
        return known | ({} if self.size is None else {"input_size": (3, *self.size)})

    def over(self, other: Preprocessing) -> Preprocessing:
        """This one, and of `other` what this one does not know."""
        mine = {name: getattr(self, name) for name in _READERS if getattr(self, name) is not None}
        theirs = {name: getattr(other, name) for name in _READERS if name not in mine}
        sources = {**other.sources, **self.sources}
        return Preprocessing(**mine, **theirs, sources=sources, hints=(*self.hints, *other.hints))

    def differing(self, other: Preprocessing) -> dict[str, Any]:
        """What both know and `other` has another value for, by attribute: this one's value."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in _READERS}
        return {name: mine for name, (mine, its) in pairs.items() if None not in (mine, its) and not _equal(mine, its)}

    def put_into(self, config: Config) -> Config:
        """`config` with the values known here, of which `configured` are its own."""
        known = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) is not None}
        return config.updated({"training": known})

    def sized(self, size: tuple[int, ...], source: str) -> Preprocessing:
        """This one with inputs of (H, W), whatever it knew of them."""
        rows, columns = size
        return dataclasses.replace(self, size=(rows, columns), sources={**self.sources, "size": source})

    def hinted(self, *hints: str) -> Preprocessing:
        """This one with more hints."""
        return dataclasses.replace(self, hints=(*self.hints, *hints))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as reports and files keep it."""
        known = {name: getattr(self, name) for name in _READERS if getattr(self, name) is not None}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
        return {**plain, "sources": dict(self.sources), "hints": list(self.hints)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """What `to_dict` wrote."""
        known = {name: _READERS[name](values[name]) for name in _READERS if name in values}
        return cls(**known, sources=dict(values.get("sources", {})), hints=tuple(values.get("hints", ())))

    def describe(self) -> str:
        """One line: every value, those of one source together, such as `224 x 224, mean 0.5, std 0.5 (config.json)`."""
        by_source: dict[str, list[str]] = {}
        small = self.size is not None and max(self.size) <= SMALL_IMAGE
        for name in ("size", "mean", "std") if small else _READERS:
            if getattr(self, name) is not None:
                by_source.setdefault(self.sources.get(name, "unknown"), []).append(_text(name, getattr(self, name)))
        return "; ".join(f"{', '.join(parts)} ({source})" for source, parts in by_source.items())

    def with_warning(self) -> Preprocessing:
        """This one with a hint if its normalisation is nobody's but the default, which training would not show."""
        names = [name for name in ("mean", "std") if self.sources.get(name) == DEFAULT.sources[name]]
        if not names:
            return self
        return self.hinted(
            f"Nobody says how the model's images were normalised, so that {' and '.join(names)} are ImageNet's: "
            f"{' '.join(f'--set training.{name}=...' for name in names)} if that is wrong."
        )

    def lines(self) -> list[str]:
        """For people: what images get, and each hint."""
        return [f"images: {self.describe()}", *(f"note: {hint}" for hint in dict.fromkeys(self.hints))]

    def as_options(self) -> str:
        """What a user types to have it so."""
        return options_for({name: getattr(self, name) for name in _READERS if getattr(self, name) is not None})


def options_for(values: Mapping[str, Any]) -> str:
    """What a user types to have these `values` of a `Preprocessing`."""
    size = [f"--input-size 3,{values['size'][0]},{values['size'][1]}"] if "size" in values else []
    return " ".join([*size, *(f"--set training.{name}={_setting(v)}" for name, v in values.items() if name != "size")])


def _setting(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"[{','.join(f'{v:g}' for v in value)}]" if isinstance(value, tuple) else f"{value:g}"


def _text(name: str, value: Any) -> str:
    if name == "size":
        return f"{value[0]} x {value[1]}"
    if name == "interpolation":
        return str(value)
    return f"{name} {' '.join(f'{v:.4g}' for v in value) if isinstance(value, tuple) else f'{value:.4g}'}"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, str):
        return bool(one == other)
    ones, others = (value if isinstance(value, tuple) else (value,) for value in (one, other))
    longest = max(len(ones), len(others))
    ones, others = (values * longest if len(values) == 1 else values for values in (ones, others))
    return len(ones) == len(others) and all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(ones, others, strict=True))


def _setting_reader(name: str) -> Callable[[Any], Any]:
    """Checks a value as the key of the configuration that it becomes."""

    def read(value: Any) -> Any:
        if value == AUTO:
            raise ValueError("no value")
        return getattr(Config().updated({"training": {name: value}}).training, name)

    return read


def _size(value: Any) -> tuple[int, int]:
    """Of (H, W), or of (C, H, W)."""
    sides = list(value)[-2:]
    rows, columns = (int(side) for side in sides)
    if [rows, columns] != sides or bool in map(type, sides):
        raise ValueError("sides are whole numbers of pixels")
    if not 1 <= min(rows, columns) <= max(rows, columns) <= _LARGEST_SIDE:
        raise ValueError("no side of an image")
    return rows, columns


_LARGEST_SIDE = 4096
_READERS: dict[str, Callable[[Any], Any]] = {"size": _size, **{name: _setting_reader(name) for name in SETTINGS}}
"""Attribute to what checks a value from outside and brings it to its type, in the order in which people read them."""

_COUNTS: Mapping[str, tuple[int, ...]] = {"size": (2,), "mean": (1, 3), "std": (1, 3)}
"""How many numbers a value may have: images have one channel or three."""

DEFAULT = Preprocessing(
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop_pct=0.875,
    interpolation="bilinear",
    sources=dict.fromkeys(SETTINGS, "default"),
)
"""That of torchvision's reference training, for who says nothing."""
