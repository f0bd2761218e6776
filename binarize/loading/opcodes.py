"""List the names a pickle would import, by walking its opcodes; nothing is imported or called."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import IO, Any

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
_LEGACY_PICKLES = 5


def pickle_globals(data: bytes | IO[bytes]) -> tuple[str, ...]:
    """Names ("module.attribute") that one pickle imports, in order, each once; stops where it is damaged."""
    return tuple(dict.fromkeys(_walk(data)))


def legacy_globals(stream: IO[bytes]) -> tuple[str, ...]:
    """Like `pickle_globals` for a torch < 1.6 file: five pickles one after another, then raw data."""
    names: dict[str, None] = {}
    for _ in range(_LEGACY_PICKLES):
        names.update(dict.fromkeys(_walk(stream)))
    return tuple(names)


def foreign(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those names that go beyond tensors, plain containers and the training options we let in."""
    return tuple(name for name in names if not _is_plain(name))


def dangerous(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those names that run commands or code and have no place in a model."""
    return tuple(name for name in names if _is_dangerous(name))


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


def _walk(data: bytes | IO[bytes]) -> Iterator[str]:
    """Yield imported names. STACK_GLOBAL takes its two from the stack, followed here through the memo."""
    strings: list[str] = []
    memo: dict[int, Any] = {}
    last: Any = None
    try:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".", 1)
                last = None
            elif name == "STACK_GLOBAL":
                yield ".".join(strings[-2:]) if len(strings) > 1 else "?"
                last = None
            elif "UNICODE" in name or "STRING" in name:
                last = argument
                strings.append(str(argument))
            elif name == "MEMOIZE":
                memo[len(memo)] = last
            elif "PUT" in name:
                memo[int(argument or 0)] = last
            elif "GET" in name:
                last = memo.get(int(argument or 0))
                if isinstance(last, str):
                    strings.append(last)
            else:
                last = None
    except Exception:  # a damaged pickle: its reader will say so, names seen so far are worth having
        return
