"""Every choice of a conversion in frozen dataclasses: TOML in and out, unknown keys are errors."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from binarize.errors import UsageError

_LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "surgery.depthwise_inputs": (1, 1 << 20),
    "conv.activation_bases": (1, 8),
    "conv.weight_bases": (1, 8),
    "conv.gate_reduction": (1, 1 << 20),
    "conv.interactions": (0, 1 << 10),
    "training.epochs": (0, 1e6),
    "training.float_epochs": (0, 1e6),
    "training.batch_size": (1, 1 << 20),
    "training.calibration_images": (1, 1 << 24),
    "training.bn_images": (0, 1 << 24),
    "training.warmup": (0, 1),
    "training.holdout": (0, 0.9),
    "training.mean": (0, 1),
    "training.std": (1e-4, 1e4),
    "training.crop_pct": (0.1, 1),
    "training.workers": (0, 1024),
    "stage.temperature": (1e-3, 1e3),
    "stage.search_every": (1, 1 << 24),
}
"""Ranges, both ends included, of the numbers that have narrower ones than `_ANY_NUMBER`."""

_ANY_NUMBER = (0, 1e38)
"""No number here has a meaning below 0; beyond this, float32 ends."""

_EXAMPLES = {
    bool: "true or false",
    int: "a whole number such as 64",
    float: "a number such as 0.5",
    str: "a text",
}
"""What a value of each type looks like, for hints."""


class _Checked:
    """A dataclass whose values are checked and brought to their types also when it is made in code."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        table = type(self).__name__.removesuffix("Config").lower()
        for key, hint in hints.items():
            if not dataclasses.is_dataclass(hint):
                name = f"{table}.{key}" if table else key
                value = _checked(getattr(self, key), hint, name, type(self).__name__)
                object.__setattr__(self, key, value)


@dataclass(frozen=True)
class SurgeryConfig(_Checked):
    """Which convolutions become binary, and what becomes of the layers around them."""

    keep: tuple[str, ...] = ()
    """What stays float: globs on layer or module paths, or `rule:NAME` (docs/plan.md); an unknown one is an error."""
    only: tuple[str, ...] = ()
    """The same for what may become binary; everything else stays float. Empty: everything."""
    linear: Literal["keep", "spatial", "all"] = "keep"
    """Linear layers as 1x1 convs: none; those on feature maps with channels last; all but the one that answers."""
    strict: bool = False
    """A conv that stays float for another reason than stem, classifier, gate or `keep` and `only` is an error."""
    binarize_stem: bool = False
    """Binarize the first conv too, which sees raw pixels; costs much accuracy."""
    activation: Literal["rprelu", "prelu", "hardtanh", "none", "keep"] = "rprelu"
    """What replaces a ReLU-like activation whose output meets a sign; `none`: nothing."""
    activation_slope: float = 0.25
    """Start of the replacement's negative slope."""
    depthwise_inputs: int = 1
    """Input channels per output of what were depthwise convs: 1 leaves them depthwise, 4 is MoBiNet's K."""


@dataclass(frozen=True)
class ConvConfig(_Checked):
    """What a binary convolution is made of: `scale * (q(x - threshold) conv q(W))`, in order of computation."""

    threshold: Literal["median", "zero", "none"] = "median"
    """Start of each conv's threshold per input channel: the channel's median on calibration data, or 0; `none`: it
    stays 0."""
    activations: Literal["sign", "ternary", "bases"] = "sign"
    """Values of the input: signs, {-1, 0, 1} (TBN), or `activation_bases` weighted sign planes (ABC-Net)."""
    activation_gradient: Literal["approx", "clip"] = "approx"
    """Gradient of the activations' sign: Bi-Real's ApproxSign, or the clipped straight-through estimator."""
    activation_bases: int = 3
    """N of ABC-Net."""
    ternary_factor: float = 0.4
    """The input is 0 within this times its mean absolute value."""
    weights: Literal["sign", "centred", "bases"] = "sign"
    """Signs of the latent weight, of it centred over input channels (XNOR-Net), or `weight_bases` sums of signs."""
    weight_gradient: Literal["magnitude", "clip", "exact", "identity"] = "magnitude"
    """Gradient of the latent weight, see `binarize.nn.SignWeight`."""
    weight_bases: int = 3
    """M of ABC-Net."""
    clip: float = 1.0
    """Where clipped straight-through estimators stop."""
    scale: Literal["mean_abs", "none", "learned", "spatial"] = "mean_abs"
    """Factor of the accumulator per output channel: mean |W|, 1, or learned; `spatial` learns one per row and column
    too, and so fixes the input's size."""
    box_scale: bool = False
    """XNOR-Net's K: multiply by the box-filtered mean of |x|."""
    gate: bool = False
    """Real-to-Binary's gate: multiply by a factor per image and channel, computed from the float input."""
    gate_reduction: int = 8
    """Input channels per hidden unit of the gate."""
    gate_start: Literal["random", "even"] = "random"
    """How the gate begins: with random factors, as published, or with the same one for every channel and image."""
    interactions: int = 0
    """CI-Net's edges between channels, at most this many per conv."""


@dataclass(frozen=True)
class LinkConfig(_Checked):
    """The shortcut around each binary convolution (METHODS of Elastic-Link and its relatives)."""

    kind: Literal["elastic", "expand", "pooled", "identity", "none"] = "elastic"
    """Which convs have one: `elastic`: every conv; `expand`: convs that keep channels or multiply them; `pooled`: convs
    that keep channels; `identity`: convs that keep channels and size; `none`."""
    position: Literal["pre_bn", "post_bn"] = "pre_bn"
    """Where the link is added: `BN(conv + link)` or `BN(conv) + link`."""
    gamma: Literal["scalar", "channel", "one"] = "scalar"
    """One learnable weight per link, or one per output channel; `one`: no weight, or no link where it would be 0."""
    gamma_init: float = 1.0
    """Start of gamma (a squeeze of r channels starts at this over r)."""
    pool: Literal["avg", "max"] = "avg"
    """Pooling of a strided link."""
    residual: Literal["keep", "replace"] = "keep"
    """A block's identity shortcut that the links span: keep it with the closing link at 0, or drop it, so that a basic
    block becomes two blocks of one conv as in Bi-Real Net."""

    def named(self, kind: str) -> dict[str, Any]:
        """What `link=KIND` changes. Links that become elastic get what makes them so, a weight each, and leave a block
        its own shortcut; `link.kind=elastic` changes the reach alone."""
        if kind != "elastic" or self.kind == "elastic":
            return {"kind": kind}
        return {"kind": kind, "gamma": "channel" if self.gamma == "one" else self.gamma, "residual": "keep"}


@dataclass(frozen=True)
class StageConfig(_Checked):
    """A stretch of training: what is binary in it, where it starts, what it learns from, and how fast."""

    name: str = "binary"
    """Shown in progress and history; `--set training.stages.NAME.key=value` changes one stage."""
    share: float = 1.0
    """Share of `training.epochs`, relative to the other stages' shares."""
    activations: Literal["binary", "tanh"] = "binary"
    """What the convs' inputs are: binarized, or tanh instead."""
    weights: Literal["binary", "float"] = "binary"
    """What the convs' weights are: binarized, or the latent weights themselves."""
    start: Literal["previous", "converted"] = "previous"
    """Where it starts: the end of the previous stage, or the freshly converted and calibrated net."""
    teacher: Literal["float", "previous"] = "float"
    """Who it distills from: the float model, or the net as the previous stage left it (the first has the float one)."""
    cross_entropy: float = 1.0
    """Weight of the labels' cross entropy."""
    distillation: float = 1.0
    """Weight of KL(teacher || student)."""
    temperature: float = 1.0
    """Of the distillation's softmax."""
    attention: float = 0.0
    """Weight of the attention maps' difference (Real-to-Binary)."""
    optimizer: Literal["adam", "radam"] = "adam"
    rate: float = 1.0
    """Times `training.learning_rate`."""
    weight_rate: float = 1.0
    """Times `training.weight_step`, for the latent weights of binary convs."""
    weight_decay: float = 0.0
    """Of float convs, linear layers and, while they are float, latent weights; all other parameters have none."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the rates fall to 0 after the warm-up."""
    search: Literal["none", "genetic", "interactions"] = "none"
    """Proposals beside the gradient, kept if the loss agrees: GBCN's changes of bits, or CI-Net's edges."""
    search_every: int = 20
    """Steps between two proposals."""


@dataclass(frozen=True)
class TrainingConfig(_Checked):
    """Fine-tuning with the float model as teacher."""

    epochs: float = 8.0
    """Passes over the training images, all stages together; may be a fraction."""
    stages: tuple[StageConfig, ...] = field(default_factory=lambda: (StageConfig(),))
    """What happens in them, in order; the last one must be binary."""
    float_epochs: float = 0.0
    """Passes that first adapt the float model to the data; it then starts and teaches the binary one."""
    float_learning_rate: float = 0.02
    """Peak SGD learning rate of that adaptation."""
    float_weight_decay: float = 1e-4
    """Weight decay of that adaptation."""
    batch_size: int = 64
    learning_rate: float = 7e-3
    """Peak Adam rate of everything but the latent weights of binary convs."""
    weight_step: float = 0.08
    """Peak Adam step of latent weights, in units of each layer's mean |weight|, which cancels its scale."""
    warmup: float = 0.02
    """Share of a stage spent warming up; then cosine to 0."""
    calibration_images: int = 512
    """Images that set thresholds and BN statistics before training."""
    bn_images: int = 2048
    """Images of the BN re-estimation after training; kept if held-out training images agree. 0: never."""
    holdout: float = 0.005
    """Share of the training images held out for that comparison."""
    augment: Literal["standard", "crop", "none"] = "standard"
    """`standard`: crop and horizontal flip; `crop`: no flip; `none`."""
    mean: tuple[float, ...] | Literal["auto"] = "auto"
    """Channel means of the input normalisation the float model was trained with (images in [0, 1]); `auto`: what the
    model says, else ImageNet's."""
    std: tuple[float, ...] | Literal["auto"] = "auto"
    """Channel standard deviations of that normalisation; `auto`: likewise."""
    crop_pct: float | Literal["auto"] = "auto"
    """Share of the scaled image's side that evaluation sees, of inputs above 64 pixels; `auto`: what the model says,
    else 0.875."""
    interpolation: Literal["auto", "bilinear", "bicubic"] = "auto"
    """How such images are scaled; `auto`: as the model says, else `bilinear`."""
    workers: int = 0
    """Processes that decode large images."""
    compile: Literal["auto", "on", "off"] = "auto"
    """`torch.compile` the training step; `auto`: when the run is long enough to repay it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the training step's arithmetic; `auto`: bfloat16 on a GPU. Weights, losses and accuracies stay float32."""
    checkpoint_minutes: float = 5.0
    """At most this much work is lost to a kill."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise UsageError(f"two of training.stages have one name: {', '.join(names)}")
        last = self.stages[-1]
        if (last.activations, last.weights) != ("binary", "binary") or sum(s.share for s in self.stages) <= 0:
            raise UsageError(
                f"the last of training.stages, {last.name!r}, must have binary activations and weights and a share",
                hint='for example --set training.stages=[{name="binary"}]',
            )
        for stage in self.stages:
            if stage.share > 0 and not (stage.cross_entropy or stage.distillation or stage.attention):
                raise UsageError(
                    f"training.stages.{stage.name} minimises nothing: "
                    "its cross_entropy, distillation and attention are all 0",
                    hint=f"give one of them a weight, such as --set training.stages.{stage.name}.cross_entropy=1",
                )


@dataclass(frozen=True)
class ExportConfig(_Checked):
    """The ONNX file."""

    stem: Literal["float", "int8"] = "float"
    """Type of the ends that stay unbinarized: the layers before the first binary conv and the classifier."""
    stream: Literal["float32", "float16"] = "float32"
    """Type of the feature maps between binary layers; float16 halves their memory traffic, arithmetic stays float32."""


@dataclass(frozen=True)
class Config(_Checked):
    """A whole conversion."""

    recipe: str = "el"
    seed: int = 0
    surgery: SurgeryConfig = field(default_factory=SurgeryConfig)
    conv: ConvConfig = field(default_factory=ConvConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as TOML and JSON want it (tuples become lists)."""
        return _plain(dataclasses.asdict(self))

    def to_toml(self) -> str:
        """The configuration as a TOML document that `read_config` reads back."""
        top, tables = [], []
        for key, value in self.to_dict().items():
            if isinstance(value, dict):
                tables.extend(_tables(key, value))
            else:
                top.append(f"{key} = {_toml(value)}")
        return "\n\n".join(["\n".join(top), *tables]) + "\n"

    def updated(self, values: dict[str, Any], source: str = "configuration") -> Config:
        """A copy with nested `values` put in; unknown keys and wrong types are errors that name `source`."""
        return _build(self, values, source, "")

    def with_settings(self, settings: typing.Iterable[str]) -> Config:
        """A copy with `key.path=value` strings put in; the value is read as TOML, else as a string."""
        config = self
        if isinstance(settings, str):
            raise UsageError(f"settings is one text, {settings!r}", hint=f"give a list of them: [{settings!r}]")
        for setting in settings:
            path, equals, text = setting.partition("=")
            if not equals:
                raise UsageError(f"--set {setting!r} has no '='", hint="write it as --set training.epochs=8")
            if path.strip() == "recipe":
                raise UsageError(
                    f"--set {setting!r} would change the recipe's name alone", hint=f"--recipe {text.strip()}"
                )
            values: Any = _parse_value(text)
            for key in reversed(path.strip().split(".")):
                values = {key: values}
            config = config.updated(values, f"--set {setting}")
        return config


def read_config(path: str | Path, base: Config) -> Config:
    """`base` with the TOML file at `path` on top of it."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read the configuration: {error.strerror}", layer=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"not a TOML file: {error}", layer=str(path)) from error
    return base.updated(values, str(path))


def _build(current: Any, values: dict[str, Any], source: str, prefix: str) -> Any:
    hints = get_type_hints(type(current))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise UsageError(f"unknown key {name!r}", layer=source, hint=_suggest(key, hints, prefix))
        if dataclasses.is_dataclass(hints[key]):
            if isinstance(value, str) and hints[key] is LinkConfig:
                value = getattr(current, key).named(value)
            if not isinstance(value, dict):
                raise UsageError(f"{name!r} is a table, not a value", layer=source)
            changes[key] = _build(getattr(current, key), value, source, f"{name}.")
        elif isinstance(value, dict) and (element := _dataclass_in(hints[key])):
            changes[key] = _rebuilt(getattr(current, key), element, value, source, name)
        else:
            changes[key] = _checked(value, hints[key], name, source)
    return dataclasses.replace(current, **changes)


def _rebuilt(current: tuple[Any, ...], element: type, values: dict[str, Any], source: str, name: str) -> Any:
    """`current`, a tuple of named dataclasses, with `{name: {key: value}}` put in."""
    known = {item.name: item for item in current}
    for each, changes in values.items():
        if each not in known:
            hint = f"known: {', '.join(known)}"
            raise UsageError(f"there is no {name}.{each}", layer=source, hint=hint)
        if not isinstance(changes, dict):
            raise UsageError(f"'{name}.{each}' is a table, not a value", layer=source)
        known[each] = _build(known[each], changes, source, f"{name}.{each}.")
    return tuple(known.values())


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass of which `hint` is a tuple, else None."""
    arguments = get_args(hint) if get_origin(hint) is tuple else ()
    return arguments[0] if arguments and issubclass(arguments[0], _Checked) else None


def _suggest(key: str, known: typing.Iterable[str], prefix: str) -> str:
    """A hint for an unknown `key`: the place that has it, or near names here."""
    everywhere = get_type_hints(Config)
    if prefix and key in everywhere:
        return f"did you mean {key}?"
    for table, made in everywhere.items():
        if dataclasses.is_dataclass(made) and key in get_type_hints(made):
            return f"did you mean {table}.{key}?"
    known = list(known)
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
    return f"did you mean {', '.join(prefix + k for k in close)}?" if close else f"known: {', '.join(known)}"


def _checked(value: Any, hint: Any, name: str, source: str) -> Any:
    """`value` as the field's type, or a UsageError."""
    if words := [h for h in get_args(hint) if get_origin(h) is Literal]:  # a word in the place of a number
        if isinstance(value, str) and value in get_args(words[0]):
            return value
        hint = next(h for h in get_args(hint) if h not in words)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UsageError(f"{name!r} is {value!r}", layer=source, hint=f"one of {', '.join(get_args(hint))}")
        return value
    if element := _dataclass_in(hint):
        return _checked_tables(value, element, name, source)
    if get_origin(hint) is tuple:
        return _checked_list(value, get_args(hint)[0], name, source)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1000 else float("inf")  # no OverflowError
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        what = f"{name!r} is {value!r}, which is not {hint.__name__}"
        raise UsageError(what, layer=source, hint=_EXAMPLES[hint])
    table = "stage." if name.startswith("training.stages.") else name.rpartition(".")[0] + "."
    low, high = _LIMITS.get((table + name.rpartition(".")[2]).removeprefix("."), _ANY_NUMBER)
    if hint in (int, float) and not low <= value <= high:
        raise UsageError(f"{name!r} is {value}", layer=source, hint=f"a number from {low:g} to {high:g}")
    return value


def _checked_tables(value: Any, element: type, name: str, source: str) -> tuple[Any, ...]:
    """A list of tables as a tuple of `element`s; at least one."""
    if not isinstance(value, list | tuple) or not value:
        raise UsageError(f"{name!r} is {value!r}, which is not a list of tables", layer=source)
    built = []
    for index, item in enumerate(value):
        if not isinstance(item, dict | element):
            raise UsageError(f"'{name}.{index}' is {item!r}, which is not a table", layer=source)
        built.append(_build(element(), item, source, f"{name}.{index}.") if isinstance(item, dict) else item)
    return tuple(built)


def _checked_list(value: Any, element: type, name: str, source: str) -> tuple[Any, ...]:
    """A list of checked elements, as a tuple; a single value counts as a list of one."""
    values = [value] if isinstance(value, str if element is str else int | float) else value
    if not isinstance(values, list | tuple) or (element is float and not values):
        example = '["stem", "layer1.*"]' if element is str else "[0.485, 0.456, 0.406]"
        raise UsageError(f"{name!r} is {value!r}, which is not a list", layer=source, hint=f"such as {example}")
    return tuple(_checked(v, element, name, source) for v in values)


def _parse_value(text: str) -> Any:
    try:
        values = tomllib.loads(f"v = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text.strip()
    return values["v"] if len(values) == 1 else text.strip()  # several lines are several settings


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _tables(key: str, values: dict[str, Any]) -> list[str]:
    """A table's TOML, and that of each list of tables in it."""
    lists = {k: v for k, v in values.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    plain = [f"{k} = {_toml(v)}" for k, v in values.items() if k not in lists]
    found = ["\n".join([f"[{key}]", *plain])]
    for name, items in lists.items():
        found += ["\n".join([f"[[{key}.{name}]]", *(f"{k} = {_toml(v)}" for k, v in i.items())]) for i in items]
    return found


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return repr(value)
