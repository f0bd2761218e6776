"""Which names inside a pickle are plain data, which belong to models of libraries we know, and which are attacks."""

from __future__ import annotations

# Modules that no model needs and every exploit does: they decide how loudly the refusal warns.
_DANGEROUS_MODULES = {
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "importlib", "runpy", "pty", "ctypes",
    "webbrowser", "code", "pickle", "marshal", "commands",
}  # fmt: skip
_DANGEROUS_BUILTINS = {"eval", "exec", "compile", "open", "__import__", "breakpoint", "input"}

_PLAIN_MODULES = ("torch._utils.", "torch.storage.", "torch.serialization.", "torch._tensor.", "collections.")
_PLAIN_NAMES = {
    "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "builtins.set", "builtins.bytearray",
    "builtins.complex", "_codecs.encode", "argparse.Namespace",
}  # fmt: skip

_LIBRARIES = ("torch.nn.", "torchvision.models.", "torchvision.ops.", "timm.models.", "timm.layers.")
"""Where layers and the small objects that they hold may come from. Their code is installed, not in the file."""


def foreign(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those names that go beyond tensors, plain containers and the training options we let in."""
    return tuple(name for name in names if not _is_plain(name))


def dangerous(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those names that run commands or code and have no place in a model."""
    return tuple(name for name in names if _is_dangerous(name))


def from_library(name: str) -> bool:
    """Whether a class or function belongs to the libraries whose models are rebuilt without asking for trust."""
    return name.startswith(_LIBRARIES)


def _is_dangerous(name: str) -> bool:
    top, _, rest = name.partition(".")
    if top in ("builtins", "__builtin__"):
        return rest in _DANGEROUS_BUILTINS
    return top in _DANGEROUS_MODULES


def _is_plain(name: str) -> bool:
    module, _, _ = name.rpartition(".")
    return (
        name in _PLAIN_NAMES
        or name.startswith(_PLAIN_MODULES)
        or module in ("torch", "torch.cuda")
        or module.startswith(("numpy", "pathlib"))
    )
