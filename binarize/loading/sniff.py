"""Tell model files apart by their bytes, zip directory and pickle opcodes, executing nothing.

What is found here chooses the reader and words the error messages. It is not the guard: that is
`torch.load(weights_only=True)`, because a crafted pickle can hide names from any opcode scan.
"""

from __future__ import annotations

import codecs
import itertools
import json
import struct
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from binarize.errors import UnsupportedModelError
from binarize.loading.opcodes import EndlessPickle, pickle_globals

Kind = Literal[
    "checkpoint",
    "legacy checkpoint",
    "tar checkpoint",
    "torchscript",
    "pt2",
    "aoti",
    "safetensors",
    "sharded index",
    "onnx",
    "pickle",
    "other",
]

MAX_MEMBERS = 200_000
MAX_PICKLE_BYTES = 64 << 20
MAX_HEADER_BYTES = 100 << 20
# torch.save stores tensors uncompressed; only TorchScript's code is deflated, and that is small.
MAX_INFLATED_BYTES = 64 << 20

_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PICKLES = 5
_TAR_MEMBERS = 4
_ONNX_SECOND_FIELDS = (b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x32", b"\x3a", b"\x42")
_OTHER_FORMATS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"PAR1", "a parquet table"),
    (0, b"\x89HDF", "an HDF5 file (Keras, TensorFlow)"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x7fELF", "a compiled library"),
    (0, b"version https://git-lfs", "a Git LFS pointer; the weights themselves were not fetched"),
)


@dataclass(frozen=True)
class Sniffed:
    """What a file is.

    Attributes:
        kind: how to read it.
        detail: the file in words, for messages ("a PNG image").
        globals: the names its pickle would import, in order ("torch._utils._rebuild_tensor_v2").
        stored: every zip member is uncompressed, so that the file can be memory-mapped.
    """

    kind: Kind
    detail: str
    globals: tuple[str, ...] = ()
    stored: bool = True


def sniff_file(path: Path) -> Sniffed:
    """Find out what the regular file `path` holds, reading only its head and directory.

    Raises:
        UnsupportedModelError: the file is empty, truncated, damaged or a decompression bomb.
        OSError: the file cannot be read.
    """
    try:
        return _sniff(path)
    except EndlessPickle as error:
        raise damaged(path, f"Its pickle has {error}: a damaged file or an attack on memory") from error


def _sniff(path: Path) -> Sniffed:
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(512)
        stream.seek(0)
        if not head:
            raise damaged(path, "The file is empty (0 bytes)")
        if head.startswith(b"PK"):
            return _sniff_zip(path, stream, size)
        for offset, magic, words in _OTHER_FORMATS:
            if head[offset:].startswith(magic):
                return Sniffed("other", words)
        if head.startswith(_LEGACY_START):
            names = [name for _ in range(_LEGACY_PICKLES) for name in pickle_globals(stream)]
            return Sniffed("legacy checkpoint", "a checkpoint of torch < 1.6", tuple(dict.fromkeys(names)))
        if head[257:262] == b"ustar":
            return _sniff_tar(stream)
        if head[:1] == b"\x80" and head[1:2] <= b"\x05":
            return Sniffed("pickle", "a plain pickle", pickle_globals(stream.read(MAX_PICKLE_BYTES)))
        if _header_length(head) is not None:
            return _sniff_safetensors(path, stream, size)
        if head[:1] == b"\x08" and head[2:3] in _ONNX_SECOND_FIELDS:
            return Sniffed("onnx", "an ONNX model")
        return _sniff_text(path, stream, head)


def damaged(path: Path, what: str) -> UnsupportedModelError:
    """The error for a file that is cut short or corrupt; `what` lacks its full stop."""
    hint = "copy or download the file again and compare its size"
    return UnsupportedModelError(f"{what}.", layer=str(path), hint=hint)


def _sniff_zip(path: Path, stream: IO[bytes], size: int) -> Sniffed:
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, EOFError, OSError) as error:
        raise damaged(path, f"The zip archive is truncated or damaged ({size} bytes, no readable directory)") from error
    with archive:
        members = archive.infolist()
        stored = _check_zip_sizes(path, members, size)
        names = [member.filename for member in members]
        if _has(names, "archive_format") or _has(names, "serialized_exported_program.json"):
            if any("/models/" in name or name.endswith("_program.json") for name in names):
                return Sniffed("pt2", "a torch.export archive")
            return Sniffed("aoti", "a compiled AOTInductor package")
        data = next((member for member in members if _has([member.filename], "data.pkl")), None)
        if data is None:
            return Sniffed("other", "a zip archive that torch.save did not write")
        if _has(names, "constants.pkl") and any("/code/" in name for name in names):
            return Sniffed("torchscript", "a TorchScript program")
        found = pickle_globals(_read_member(path, archive, data))
        return Sniffed("checkpoint", "a torch.save checkpoint", found, stored)


def _sniff_tar(stream: IO[bytes]) -> Sniffed:
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            names = {member.name for member in itertools.islice(archive, _TAR_MEMBERS)}
            if {"storages", "tensors", "pickle"} <= names and (pickled := archive.extractfile("pickle")):
                return Sniffed("tar checkpoint", "a checkpoint of torch < 0.1.10", pickle_globals(pickled))
    except (tarfile.TarError, KeyError, ValueError, OSError):  # another tar, or half of one
        pass
    return Sniffed("other", "a tar archive")


def _has(names: list[str], base: str) -> bool:
    return any(name.rpartition("/")[2] == base for name in names)


def _check_zip_sizes(path: Path, members: list[zipfile.ZipInfo], size: int) -> bool:
    """Refuse archives that would unpack to far more than they hold; tell if all is stored plain."""
    if len(members) > MAX_MEMBERS:
        raise damaged(path, f"The zip archive has {len(members)} members, more than {MAX_MEMBERS}")
    plain = sum(m.file_size for m in members if m.compress_type == zipfile.ZIP_STORED)
    packed = [m for m in members if m.compress_type != zipfile.ZIP_STORED]
    inflated = sum(m.file_size for m in packed)
    if plain > size or inflated > max(MAX_INFLATED_BYTES, 4 * size):
        raise UnsupportedModelError(
            f"The zip archive of {size} bytes claims {plain + inflated} bytes of content: "
            "a damaged file or a decompression bomb.",
            layer=str(path),
            hint="get the file again from a source you trust",
        )
    return not packed


def _read_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > MAX_PICKLE_BYTES:
        raise damaged(path, f"Its {member.filename} claims {member.file_size} bytes, too many")
    try:
        with archive.open(member) as stream:
            return stream.read(MAX_PICKLE_BYTES)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError, ValueError) as error:
        raise damaged(path, f"{member.filename} inside the archive cannot be read ({error})") from error
    except Exception as error:  # zlib.error and friends: whatever a decompressor raises on bad input
        raise damaged(path, f"{member.filename} inside the archive is damaged ({error})") from error


def _header_length(head: bytes) -> int | None:
    """Length of a safetensors header; None if these bytes do not begin one."""
    if len(head) < 9 or head[8:9] != b"{":
        return None
    length = int.from_bytes(head[:8], "little")
    # Text would give a number near 2**60 here.
    return length if length < 1 << 40 else None


def _sniff_safetensors(path: Path, stream: IO[bytes], size: int) -> Sniffed:
    length = _header_length(stream.read(9)) or 0
    if length > MAX_HEADER_BYTES or 8 + length > size:
        raise damaged(path, f"The safetensors file is truncated: {size} bytes of at least {8 + length}")
    stream.seek(8)
    try:
        header = json.loads(stream.read(length))
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise damaged(path, "The safetensors header is damaged") from error
    needed = 8 + length + max(ends, default=0)
    if needed != size:
        state = "truncated" if needed > size else "damaged"
        raise damaged(path, f"The safetensors file is {state}: {size} bytes, its header asks for {needed}")
    return Sniffed("safetensors", "a safetensors file")


def _sniff_text(path: Path, stream: IO[bytes], head: bytes) -> Sniffed:
    try:
        # The head may end within a character, which an incremental decoder allows.
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=False)
    except UnicodeDecodeError:
        return Sniffed("other", "an unknown binary format")
    start = text.lstrip().lower()
    if start.startswith(("<!doctype html", "<html")):
        return Sniffed("other", "an HTML page; the download gave a web page instead of the weights")
    if start.startswith("{") and path.name.endswith(".index.json"):
        return Sniffed("sharded index", "an index of sharded safetensors files")
    control = sum(not (c.isprintable() or c in "\n\r\t") for c in text)
    return Sniffed("other", "a text file" if control == 0 else "an unknown binary format")
