"""Which models there are: torchvision's, timm's CNNs, and the factories in Python files."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from binarize.errors import UsageError
from binarize.loading.architecture import resolve, timm_names, torchvision_names
from binarize.loading.recognise import load_index

LIBRARIES = ("torchvision", "timm")
"""Sources that are no files."""


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        spec: what builds it, as `--arch` takes it.
        name: the model's own name.
        family: the module it is defined in, such as `resnet` or `detection.faster_rcnn`.
        tensors: of its state dict, as far as the index knows: small variants have few.
    """

    spec: str
    name: str
    family: str
    tensors: int = 0

    @property
    def source(self) -> str:
        return self.spec.rpartition(":")[0]


def entries(
    sources: Sequence[str] = ("torchvision",),
    *,
    families: Iterable[str] = (),
    models: Iterable[str] = (),
    per_family: int | None = None,
    shard: tuple[int, int] = (1, 1),
) -> list[Entry]:
    """The models of some sources, in a fixed order.

    Args:
        sources: `torchvision`, `timm`, Python files or folders of them (the functions in their `__all__`).
        families, models: globs; one of each must match.
        per_family: at most so many of each family, those with the fewest tensors.
        shard: (i, n): every n-th model from the i-th on, 1 <= i <= n.

    Raises:
        UsageError: an unknown source, a pattern without a match, or an impossible shard.
        EnvironmentProblem: timm is asked for and not installed.
    """
    found = list(dict.fromkeys(entry for source in sources for entry in _from_source(source)))
    found = _matching(found, list(families), "family")
    found = _matching(found, list(models), "name")
    if per_family is not None:
        found = _smallest(found, per_family)
    part, parts = shard
    if not 1 <= part <= parts:
        raise UsageError(f"--shard {part}/{parts} is no part of a whole", hint="for example --shard 1/4")
    return found[part - 1 :: parts]


def _from_source(source: str) -> list[Entry]:
    if source == "torchvision":
        return list(_torchvision())
    if source == "timm":
        return list(_timm())
    path = Path(source)
    if not path.exists():
        raise UsageError(
            f"'{source}' is no source of models", hint="give torchvision, timm, a Python file or a folder of them"
        )
    files = [path] if path.is_file() else [file for file in sorted(path.glob("*.py")) if file.stem != "__init__"]
    return [Entry(f"{file}:{name}", name, file.stem) for file in files for name in _public_names(file)]


def _torchvision() -> Iterator[Entry]:
    tensors = _tensors()
    for name in torchvision_names():
        spec = f"torchvision:{name}"
        family = resolve(spec).factory.__module__.removeprefix("torchvision.models.")
        yield Entry(spec, name, family, tensors.get(spec, 0))


def _timm() -> Iterator[Entry]:
    installed = set(timm_names())
    from timm.models import model_entrypoint

    for spec, count in sorted(_tensors().items()):
        name = spec.removeprefix("timm:")
        if name in installed and spec != name:
            yield Entry(spec, name, model_entrypoint(name).__module__.rpartition(".")[2], count)


def _tensors() -> dict[str, int]:
    """How many tensors every indexed model has, by its spelling for `--arch`."""
    return {spec: sketch.count for sketch, specs in load_index().items() for spec in specs}


def _public_names(file: Path) -> list[str]:
    """The `__all__` of a Python file, which is parsed and not run."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(getattr(target, "id", "") == "__all__" for target in targets):
                return [str(name) for name in ast.literal_eval(node.value)]
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"the file cannot be parsed: {error}", layer=str(file)) from error
    raise UsageError("the file has no __all__", layer=str(file), hint='name its factories: __all__ = ["net"]')


def _matching(found: list[Entry], patterns: list[str], attribute: str) -> list[Entry]:
    """Those entries whose `attribute` matches a pattern; all, if there are no patterns."""
    for pattern in patterns:
        if not any(fnmatchcase(getattr(entry, attribute), pattern) for entry in found):
            known = sorted({getattr(entry, attribute) for entry in found})
            raise UsageError(f"no model's {attribute} matches {pattern!r}", hint=f"there are {', '.join(known[:12])}")
    if not patterns:
        return found
    return [entry for entry in found if any(fnmatchcase(getattr(entry, attribute), p) for p in patterns)]


def _smallest(found: list[Entry], count: int) -> list[Entry]:
    families: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in found:
        families[entry.source, entry.family].append(entry)
    kept = [sorted(family, key=lambda e: (e.tensors, e.name))[:count] for family in families.values()]
    return [entry for family in kept for entry in family]
