"""Open what torch.save has written in its three formats, and TorchScript, without unpickling.

Each gives the pickled value as plain data (see `opcodes`) and the tensors or storages that it refers to.
"""

from __future__ import annotations

import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from binarize.loading.opcodes import BadPickle, Name, Persistent, PickleReader, Record
from binarize.loading.sniff import MAX_PICKLE_BYTES, Sniffed

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_MAX_DIMENSIONS = 64


@dataclass(frozen=True)
class Archive:
    """An opened file.

    Attributes:
        root: the pickled value, as plain data.
        lookup: what a persistent id stands for: the one-dimensional elements of a storage, or a whole tensor.
    """

    root: Any
    lookup: Callable[[Any], Tensor]


def open_archive(path: Path, sniffed: Sniffed) -> Archive:
    """Open a file of the kinds "checkpoint", "torchscript", "legacy checkpoint" or "tar checkpoint".

    Raises:
        ValueError, KeyError, OSError and what else parsers raise: it is damaged.
    """
    if sniffed.kind == "legacy checkpoint":
        return _open_legacy(path)
    if sniffed.kind == "tar checkpoint":
        return _open_tar(path)
    return _open_zip(path)


def _open_zip(path: Path) -> Archive:
    """torch from 1.6 on: a zip of the pickle `data.pkl` and a member `data/KEY` for each storage."""
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
        folder = pickled.removesuffix("data.pkl")
        root = PickleReader(archive.read(pickled)).read()
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("written by a big-endian machine")
        storages = {
            key: _elements(archive.read(f"{folder}data/{key}"), dtype, count)
            for key, (dtype, count) in _storages_in(root).items()
        }
    return Archive(root, lambda pid: storages[pid[2]])


def _open_legacy(path: Path) -> Archive:
    """torch 0.1.10 to 1.5: five pickles (magic, protocol, system, value, storage keys), then the raw storages."""
    with path.open("rb") as stream:
        _, _, _, root, keys = (PickleReader(stream).read() for _ in range(5))
        wanted = _storages_in(root)
        storages = {key: _read_storage(stream, wanted[key][0]) for key in keys}

    def lookup(pid: Any) -> Tensor:
        view = pid[5]
        return storages[pid[2]] if view is None else storages[pid[2]].narrow(0, view[1], view[2])

    return Archive(root, lookup)


def _open_tar(path: Path) -> Archive:
    """torch before 0.1.10: a tar of `storages`, `tensors` and `pickle`, which refers to tensors by number."""
    with tarfile.open(path, "r:") as archive:
        storages = _tar_storages(_member(archive, "storages"))
        tensors = dict(_tar_tensors(_member(archive, "tensors"), storages))
        root = PickleReader(_member(archive, "pickle").read(MAX_PICKLE_BYTES)).read()
    return Archive(root, lambda pid: tensors[int(pid)])


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    """A regular file inside the archive; links are not followed, holes that claim terabytes not filled."""
    member = archive.getmember(name)
    stream = archive.extractfile(member) if member.isreg() and not member.issparse() else None
    if stream is None:
        raise ValueError(f"{name} is no regular file")
    return stream


def _tar_storages(stream: IO[bytes]) -> dict[int, Tensor]:
    storages = {}
    for _ in range(PickleReader(stream).read()):
        key, _location, kind = PickleReader(stream).read()
        storages[key] = _read_storage(stream, _dtype(kind))
    for key, root, offset, count in PickleReader(stream).read():
        storages[key] = storages[root].narrow(0, offset, count)
    return storages


def _tar_tensors(stream: IO[bytes], storages: dict[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
    for _ in range(PickleReader(stream).read()):
        key, storage, _kind = PickleReader(stream).read()
        dimensions, _ = struct.unpack("<ii", stream.read(8))
        if not 0 <= dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        numbers = struct.unpack(f"<{2 * dimensions + 1}q", stream.read(8 * (2 * dimensions + 1)))
        size, stride, offset = numbers[:dimensions], numbers[dimensions:-1], numbers[-1]
        yield key, storages[storage].as_strided(size, stride, offset)


def _storages_in(root: Any) -> dict[Any, tuple[torch.dtype, int]]:
    """Element type and count of every storage that a value refers to, by key; found without recursion."""
    found: dict[Any, tuple[torch.dtype, int]] = {}
    seen: set[int] = set()
    todo = [root]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Persistent):
            kind, storage, key, _location, count = value.id[:5]
            if kind != "storage":
                raise BadPickle(f"unknown reference {kind!r}")
            found[key] = (_dtype(storage), count)
        elif isinstance(value, Record):
            todo += [value.args, value.state, value.items, value.values]
        elif isinstance(value, dict):
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            todo += value
    return found


def _dtype(storage: object) -> torch.dtype:
    """Element type of a storage class such as `torch.FloatStorage` or `torch.cuda.HalfStorage`."""
    short = storage.name.rpartition(".")[2] if isinstance(storage, Name) else ""
    if short not in _DTYPES:
        raise BadPickle(f"unknown storage {storage}")
    return _DTYPES[short]


def _read_storage(stream: IO[bytes], dtype: torch.dtype) -> Tensor:
    """A storage in the stream: the number of elements, then the elements."""
    (count,) = struct.unpack("<q", stream.read(8))
    place = stream.tell()
    left = stream.seek(0, 2) - place
    stream.seek(place)
    if not 0 <= count * dtype.itemsize <= left:
        raise ValueError(f"a storage of {count} elements in {left} bytes")
    return _elements(stream.read(count * dtype.itemsize), dtype, count)


def _elements(content: bytes, dtype: torch.dtype, count: int) -> Tensor:
    """The first `count` elements in `content`, which must hold as many."""
    if not 0 <= count * dtype.itemsize <= len(content):
        raise ValueError(f"a storage of {count} elements in {len(content)} bytes")
    return torch.frombuffer(bytearray(content), dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
