"""Read a pickle as plain data: its opcodes are interpreted here, nothing is imported and nothing is called.

Numbers, text and containers become themselves; everything that unpickling would import, call or build becomes a
`Name`, `Record` or `Persistent` that only says so. What they may turn into is decided in `objects.py`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

# The largest models and training checkpoints have some 10^5 opcodes; each may cost about 100 bytes of memory.
MAX_OPCODES = 2_000_000


@dataclass(frozen=True)
class Name:
    """A reference to something importable, "module.attribute"."""

    name: str


@dataclass(frozen=True)
class Persistent:
    """A reference to data outside the pickle, such as a tensor's storage."""

    id: Any


@dataclass(eq=False)
class Record:
    """An object as the pickle describes it.

    Attributes:
        name: the class or function that would be called, "module.attribute".
        args: with these arguments.
        state: what `__setstate__` or `__dict__` would get.
        items: keys and values set on it.
        values: what was appended or added to it.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[tuple[Any, Any]] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)


class BadPickle(ValueError):
    """The bytes are no complete pickle, or one that no writer makes."""


class EndlessPickle(BadPickle):
    """More opcodes than any model needs: reading it on would fill memory."""


class PickleReader:
    """Interprets one pickle.

    Args:
        source: bytes, or a stream that is read up to the pickle's end.

    Attributes:
        names: every "module.attribute" it refers to, in order, each once; also after an error.
    """

    def __init__(self, source: bytes | IO[bytes]) -> None:
        self.source = source
        self.names: dict[str, None] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """The pickled value.

        Raises:
            BadPickle: it is truncated, damaged or absurdly long (EndlessPickle).
        """
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(self.source)):
                if count > MAX_OPCODES:
                    raise EndlessPickle(f"more than {MAX_OPCODES} opcodes")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except BadPickle:
            raise
        except Exception as error:  # pickletools raises whatever its parsers raise; so does an empty stack here
            raise BadPickle(f"{type(error).__name__}: {error}") from error
        raise BadPickle("no end")

    def _step(self, opcode: str, argument: Any) -> None:
        if opcode in _LITERALS:
            self._stack.append(argument)
        elif opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            self._stack.append(_EMPTY[opcode]())
        elif handler := getattr(self, f"_on_{opcode.lower()}", None):
            handler(argument)
        elif opcode not in ("PROTO", "FRAME"):
            raise BadPickle(f"opcode {opcode}")

    def _to_mark(self) -> list[Any]:
        start = self._marks.pop()
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def _take(self, count: int) -> list[Any]:
        if count > len(self._stack):
            raise BadPickle("the stack is empty")
        found = self._stack[-count:]
        del self._stack[-count:]
        return found

    def _name(self, name: str) -> Name:
        self.names[name] = None
        return Name(name)

    # The stack, its marks and the memo.

    def _on_mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _on_pop(self, _: Any) -> None:
        self._take(1)

    def _on_pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _on_dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _on_put(self, key: int) -> None:
        self._memo[int(key)] = self._stack[-1]

    def _on_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _on_get(self, key: int) -> None:
        self._stack.append(self._memo[int(key)])

    _on_binput = _on_long_binput = _on_put
    _on_binget = _on_long_binget = _on_get

    # Containers.

    def _on_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._to_mark()))

    def _on_tuple1(self, _: Any) -> None:
        self._stack.append(tuple(self._take(1)))

    def _on_tuple2(self, _: Any) -> None:
        self._stack.append(tuple(self._take(2)))

    def _on_tuple3(self, _: Any) -> None:
        self._stack.append(tuple(self._take(3)))

    def _on_list(self, _: Any) -> None:
        self._stack.append(self._to_mark())

    def _on_dict(self, _: Any) -> None:
        self._stack.append(dict(_pairs(self._to_mark())))

    def _on_frozenset(self, _: Any) -> None:
        self._stack.append(frozenset(self._to_mark()))

    def _on_append(self, _: Any) -> None:
        value = self._take(1)[0]
        _extend(value, self._stack[-1])

    def _on_appends(self, _: Any) -> None:
        for value in self._to_mark():
            _extend(value, self._stack[-1])

    _on_additems = _on_appends

    def _on_setitem(self, _: Any) -> None:
        key, value = self._take(2)
        _set_items([(key, value)], self._stack[-1])

    def _on_setitems(self, _: Any) -> None:
        _set_items(list(_pairs(self._to_mark())), self._stack[-1])

    # Everything that unpickling would import, call or build.

    def _on_global(self, argument: str) -> None:
        self._stack.append(self._name(argument.replace(" ", ".", 1)))

    def _on_stack_global(self, _: Any) -> None:
        module, attribute = self._take(2)
        self._stack.append(self._name(f"{module}.{attribute}"))

    def _on_inst(self, argument: str) -> None:
        self._stack.append(Record(self._name(argument.replace(" ", ".", 1)).name, tuple(self._to_mark())))

    def _on_obj(self, _: Any) -> None:
        called, *args = self._to_mark()
        self._stack.append(_called(called, tuple(args)))

    def _on_reduce(self, _: Any) -> None:
        called, args = self._take(2)
        self._stack.append(_called(called, args))

    _on_newobj = _on_reduce

    def _on_newobj_ex(self, _: Any) -> None:
        called, args, keywords = self._take(3)
        self._stack.append(_called(called, (*args, keywords)))

    def _on_build(self, _: Any) -> None:
        state = self._take(1)[0]
        if isinstance(self._stack[-1], Record):
            self._stack[-1].state = state

    def _on_persid(self, argument: str) -> None:
        self._stack.append(Persistent(argument))

    def _on_binpersid(self, _: Any) -> None:
        self._stack.append(_referred(self._take(1)[0]))

    def _on_ext1(self, code: int) -> None:
        self._stack.append(self._name(f"copyreg.extension{code}"))

    _on_ext2 = _on_ext4 = _on_ext1


_LITERALS = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg is not None and opcode.stack_after and opcode.stack_after[0].name != "any"
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Any] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}


def _referred(pid: Any) -> Persistent | Name:
    """What an id refers to: old files say a module's class as (class, file, source) or ("module", class, ...)."""
    parts = pid[1:] if isinstance(pid, tuple) and pid[:1] == ("module",) else pid
    return parts[0] if isinstance(parts, tuple) and parts and isinstance(parts[0], Name) else Persistent(pid)


def _called(called: Any, args: Any) -> Record:
    """What calling `called` with `args` would give."""
    args = args if isinstance(args, tuple) else (args,)
    if not isinstance(called, Name):
        return Record("?", args)
    if called.name in ("copyreg._reconstructor", "copy_reg._reconstructor") and args and isinstance(args[0], Name):
        return Record(args[0].name)  # how protocols 0 and 1 say `cls.__new__(cls)`
    return Record(called.name, args)


def _pairs(flat: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _extend(value: Any, target: Any) -> None:
    if isinstance(target, list):
        target.append(value)
    elif isinstance(target, set):
        target.add(value)
    elif isinstance(target, Record):
        target.values.append(value)
    else:
        raise BadPickle(f"appending to a {type(target).__name__}")


def _set_items(pairs: list[tuple[Any, Any]], target: Any) -> None:
    if isinstance(target, dict):
        target.update(pairs)
    elif isinstance(target, Record):
        target.items.extend(pairs)
    else:
        raise BadPickle(f"setting items of a {type(target).__name__}")


def pickle_globals(data: bytes | IO[bytes]) -> tuple[str, ...]:
    """Names ("module.attribute") that one pickle refers to, in order, each once; stops where it is damaged.

    Raises:
        EndlessPickle: no reader should be given this pickle.
    """
    reader = PickleReader(data)
    try:
        reader.read()
    except EndlessPickle:
        raise
    except BadPickle:  # its reader will say so; the names seen so far are worth having
        pass
    return tuple(reader.names)
