"""Turn `--arch` into a function that builds the model: torchvision, timm, a module or a file."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from binarize.errors import BinarizeError, EnvironmentProblem, UsageError

_FORMS = "torchvision:resnet18, timm:NAME, package.module:factory or path/to/file.py:factory"
# Nothing may be downloaded: the weights come from the user's file.
_NO_DOWNLOAD = {"weights": None, "weights_backbone": None}
# Their default initialisation takes seconds and gets overwritten.
_SLOW_INITIALISATION = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class Architecture:
    """A way to build a model.

    Attributes:
        spec: the spelling that `--arch` takes.
        factory: what to call, with the arguments in `options` and any that it accepts.
        options: keyword arguments always given.
        library: it comes from torchvision or timm, so that it may be built without memory for a look.
        folder: of the file that it comes from, where its code may import others.
    """

    spec: str
    factory: Callable[..., Any]
    options: dict[str, Any]
    library: bool = False
    folder: Path | None = None

    def build(self, **extra: Any) -> nn.Module:
        """Call the factory; leaves the global random state as it was.

        Raises:
            UsageError: the factory raised, or returned something other than an nn.Module.
        """
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), _importable_here(self.folder):
                warnings.simplefilter("ignore")
                module = self.factory(**{**self.options, **extra})
        except BinarizeError:
            raise
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"The architecture raised {type(error).__name__} while being built: {error}",
                layer=self.spec,
                hint="the factory must work without arguments; wrap it in one that fills them in",
            ) from error
        if not isinstance(module, nn.Module):
            raise UsageError(f"The architecture built a {type(module).__name__}, not an nn.Module.", layer=self.spec)
        return module

    def build_for(self, num_classes: int | None) -> nn.Module:
        """Built with so many outputs, where the factory can be told and the number is known."""
        known = num_classes is not None and self.accepts("num_classes")
        return self.build(**({"num_classes": num_classes} if known else {}))

    def outline(self, **extra: Any) -> nn.Module:
        """The model for its names and shapes only; without memory or initialisation where that works."""
        if self.library:
            try:
                with torch.device("meta"):
                    return self.build(**extra)
            except UsageError:  # RegNet computes its widths with tensors, which meta tensors cannot
                pass
        return self.build(**extra)

    def accepts(self, argument: str) -> bool:
        """Does the factory name this keyword argument, or take any?"""
        parameters = _parameters(self.factory)
        return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def default(self, argument: str) -> object:
        """The factory's own default for a keyword argument, None if it has none."""
        parameter = _parameters(self.factory).get(argument)
        return None if parameter is None or parameter.default is parameter.empty else parameter.default


def resolve(spec: str) -> Architecture:
    """Find what `--arch` names: `torchvision:NAME`, `timm:NAME`, `package.module:factory`, `file.py:factory`.

    The current directory is importable. Nothing is built yet.

    Raises:
        UsageError: there is no such module, file or name; the hint has near names.
        EnvironmentProblem: the library it names is not installed.
    """
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name:
        raise _not_a_spec(spec)
    if source == "torchvision":
        return _torchvision(name)
    if source == "timm":
        return _timm(name)
    if source.endswith(".py") or "/" in source or "\\" in source:
        file = Path(source).expanduser()
        return _from_module(_import_file(file, spec), name, spec, file.parent.resolve())
    return _from_module(_import_module(source, spec), name, spec)


def resolve_recorded(spec: str | None, file: str | Path, hint: str) -> Architecture:
    """Find the architecture that a file of ours names, if it is a library's; another name would run the file's choice.

    Args:
        spec: what the file says; None if it says nothing.
        hint: how the user can name the architecture instead.

    Raises:
        UsageError: the file names none, or one outside of torchvision and timm.
    """
    if spec is None:
        raise UsageError("the file does not say which architecture it is", layer=str(file), hint=hint)
    if not spec.startswith(("torchvision:", "timm:")):
        raise UsageError(
            f"the file asks for {spec}, and code outside of torchvision and timm runs only when you name it",
            layer=str(file),
            hint=hint,
        )
    return resolve(spec)


def torchvision_names() -> list[str]:
    """All torchvision models that are not quantized."""
    from torchvision import models

    return [name for name in models.list_models() if not name.startswith("quantized_")]


def timm_names() -> list[str]:
    """All timm models.

    Raises:
        EnvironmentProblem: timm is not installed.
    """
    names: list[str] = _import_timm().list_models()
    return names


def _torchvision(name: str) -> Architecture:
    from torchvision import models

    names = torchvision_names()
    if name not in names:
        raise _no_such_name(f"torchvision has no model '{name}'", name, names, "torchvision:")
    factory = models.get_model_builder(name)
    accepted = _parameters(factory)
    options: dict[str, Any] = {key: value for key, value in _NO_DOWNLOAD.items() if key in accepted}
    if name in _SLOW_INITIALISATION:
        options["init_weights"] = False
    return Architecture(f"torchvision:{name}", factory, options, library=True)


def _timm(name: str) -> Architecture:
    timm = _import_timm()
    if not timm.is_model(name):
        raise _no_such_name(f"timm has no model '{name}'", name, timm.list_models(), "timm:")
    options = {"model_name": name, "pretrained": False}
    return Architecture(f"timm:{name}", timm.create_model, options, library=True)


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise EnvironmentProblem("timm is not installed.", hint='pip install "binarize-nn[zoo]"') from error
    module: ModuleType = timm
    return module


def _import_module(source: str, spec: str) -> ModuleType:
    try:
        with _importable_here(None):
            importlib.invalidate_caches()
            return importlib.import_module(source)
    except (Exception, SystemExit) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent and f"{source}.".startswith(f"{absent}."):
            raise UsageError(
                f"There is no module '{absent}' to import.",
                layer=spec,
                hint="run from the folder that holds it, or give the file: --arch path/to/file.py:factory",
            ) from error
        raise _import_failed(source, spec, error) from error


def _import_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in _siblings(path)], 3)
        hint = f"near names there: {', '.join(near)}" if near else "check the path"
        raise UsageError(f"There is no file '{path}'.", layer=spec, hint=hint)
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None:
        raise UsageError(f"'{path}' is not a Python file.", layer=spec, hint=f"use {_FORMS}")
    module = importlib.util.module_from_spec(found)
    # Dataclasses and pickling look a class's module up by name; never hide one that is already there.
    sys.modules.setdefault(path.stem, module)
    try:
        with _importable_here(path.parent):
            found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _import_failed(str(path), spec, error) from error
    return module


def _siblings(path: Path) -> Iterable[Path]:
    return path.parent.glob("*.py") if path.parent.is_dir() else ()


def _import_failed(source: str, spec: str, error: BaseException) -> UsageError:
    return UsageError(
        f"Importing '{source}' raised {type(error).__name__}: {error}",
        layer=spec,
        hint="make sure that it imports by itself, with python -c 'import ...'",
    )


def _from_module(module: ModuleType, name: str, spec: str, folder: Path | None = None) -> Architecture:
    factory = getattr(module, name, None)
    if factory is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise _no_such_name(f"The module has no '{name}'", name, public, f"{spec.rpartition(':')[0]}:")
    if isinstance(factory, nn.Module) or not callable(factory):
        kind = type(factory).__name__
        raise UsageError(f"'{name}' is a {kind} object, not a function or class that builds one.", layer=spec)
    return Architecture(spec, factory, {}, folder=folder)


def _not_a_spec(spec: str) -> UsageError:
    near = difflib.get_close_matches(spec, torchvision_names(), 3, 0.7)
    hint = f"did you mean torchvision:{near[0]}?" if near else f"use {_FORMS}"
    return UsageError(f"'{spec}' does not name an architecture.", hint=hint)


def _no_such_name(what: str, name: str, names: Iterable[str], prefix: str) -> UsageError:
    near = difflib.get_close_matches(name, list(names), 4, 0.5)
    hint = f"near names: {', '.join(prefix + n for n in near)}" if near else f"use {_FORMS}"
    return UsageError(f"{what}.", hint=hint)


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        return {}


@contextmanager
def _importable_here(folder: Path | None) -> Iterator[None]:
    """Make the current directory (and `folder`) importable, as they are for a script run there."""
    added = [str(path.resolve()) for path in (folder, Path.cwd()) if path is not None]
    sys.path[:0] = added
    try:
        yield
    finally:
        for entry in added:
            if entry in sys.path:
                sys.path.remove(entry)
