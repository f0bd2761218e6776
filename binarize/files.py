"""Writing so that a crash, a full disk or Ctrl-C leaves the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from binarize.errors import UsageError, cannot_write

Foreign = Callable[[Path], str | None]
"""Given a folder, the name of something in it that must not be lost; None if there is nothing of that kind."""


@contextlib.contextmanager
def atomic_output(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it if the block ends well and vanishes if it does not.

    A new file gets the mode that `open` would give it, a replaced one keeps its own; links are followed.

    Raises:
        UsageError: the folder does not exist or cannot be written to, or `path` is a folder or device.
        EnvironmentProblem: writing failed, for example on a full disk.
    """
    path = _target(path)
    temporary = _temporary_beside(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(error, str(path)) from error
    except RuntimeError as error:
        if "inline_container" not in str(error):
            raise
        full = OSError(errno.ENOSPC, "the disk takes no more data")  # how torch.save says so
        raise cannot_write(full, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path, foreign: Foreign) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place if the block ends well and vanishes if it does not.

    What is there goes for good, and so only a folder with nothing `foreign` in it is replaced; links are followed. No
    system call swaps two folders everywhere: a crash between the two renames at the end leaves the old one, whole,
    under a hidden name.

    Raises:
        UsageError: the folder around it does not exist or cannot be written to, or `path` holds other things.
        EnvironmentProblem: writing failed, for example on a full disk.
    """
    path = _replaceable(path, foreign)
    temporary, old = (path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.{end}") for end in ("partial", "old"))
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            _replaceable(path, foreign)  # once more: the block may have taken hours
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        raise cannot_write(error, str(path)) from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


def check_folder(path: str | Path, foreign: Foreign) -> None:
    """Raise UsageError now if `atomic_folder(path, foreign)` could not replace it later."""
    _temporary_beside(_replaceable(path, foreign)).unlink()


def check_writable(path: str | Path) -> None:
    """Raise UsageError now if `path` could not be written later: before hours of work, not after."""
    _temporary_beside(_target(path)).unlink()


def check_not_input(path: str | Path, source: object) -> None:
    """Raise UsageError if `path`, which is to be written, is the file `source` that is read."""
    both = isinstance(source, str | Path) and Path(path).exists() and Path(source).exists()
    if both and Path(path).samefile(source):  # type: ignore[arg-type]
        raise UsageError("the output would overwrite the model", layer=str(path), hint="give another name to --out")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_output(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _target(path: str | Path) -> Path:
    """The file that is to be written: `path`, or what it links to. Folders and devices are UsageErrors."""
    path = Path(path)
    if path.is_dir():
        raise UsageError("the output is a directory", layer=str(path), hint="give a file name")
    if path.exists() and not path.is_file():
        raise UsageError("the output is not a regular file", layer=str(path), hint="give a file name")
    return _followed(path)


def _replaceable(path: str | Path, foreign: Foreign) -> Path:
    """The folder that is to be written: `path`, or what it links to; a UsageError where something would be lost."""
    path = Path(path)
    if path.name in ("", ".."):
        raise UsageError(
            "the output is the current folder or one above it", layer=str(path), hint="give a folder's name, from above"
        )
    if path.exists() and not path.is_dir():
        raise UsageError("the output is a file, and this model needs a folder", layer=str(path), hint="give a new name")
    if path.is_dir() and (found := foreign(path)) is not None:
        raise UsageError(
            f"the output is a directory with other things in it, such as {found}",
            layer=str(path),
            hint="give a new name, or move them away: the folder is replaced as a whole",
        )
    return _followed(path)


def _followed(path: Path) -> Path:
    """What `path` links to; itself, if it is no link."""
    try:
        return path.resolve() if path.is_symlink() else path
    except RuntimeError as error:  # how Python before 3.13 says it
        raise UsageError("its symbolic links lead in a circle", layer=str(path), hint="give a new name") from error


def _temporary_beside(path: Path) -> Path:
    """A new empty file in `path`'s folder; `tempfile` would keep it from everyone but its owner for good."""
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.partial")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise UsageError(
            f"cannot write there: {error.strerror}", layer=str(path), hint="give an existing, writable folder"
        ) from error
    return temporary
