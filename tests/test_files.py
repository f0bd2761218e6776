"""Files are replaced whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from binarize.errors import EnvironmentProblem, UsageError
from binarize.files import atomic_output, check_writable, write_text

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX modes, links and limits")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file that is to survive."""
    path = tmp_path / "out.onnx"
    path.write_text("old")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_content_changes_only_when_the_block_has_ended(old: Path) -> None:
    with atomic_output(old) as temporary:
        temporary.write_text("new")
        assert temporary.parent == old.parent
        assert old.read_text() == "old"
    assert old.read_text() == "new"
    assert names(old.parent) == ["out.onnx"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, RuntimeError])
def test_the_old_file_survives_whatever_ends_the_block(old: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_output(old) as temporary:
        temporary.write_text("half of")
        raise error("stop")
    assert old.read_text() == "old"
    assert names(old.parent) == ["out.onnx"]


def test_nothing_appears_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_output(tmp_path / "new") as temporary:
        temporary.write_text("half of")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_failing_disk_is_an_environment_problem(old: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="No space left") as caught, atomic_output(old):
        raise OSError(28, "No space left on device")
    assert caught.value.layer == str(old)
    assert old.read_text() == "old"


FULL_DISK = """
import resource, sys
from pathlib import Path
from binarize.errors import EnvironmentProblem
from binarize.files import atomic_output
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with atomic_output(sys.argv[1]) as temporary:
        {write}
except EnvironmentProblem as error:
    print(error)
"""
WRITES = {
    "bytes": "temporary.write_bytes(bytes(1_000_000))",
    "torch": "import torch; torch.save(torch.zeros(1_000_000), temporary)",
}


@posix
@pytest.mark.parametrize("how", WRITES)
def test_a_file_that_may_not_grow_is_an_environment_problem(old: Path, how: str) -> None:
    """A limit on the size of files stands in for a full disk, also for torch's writer with its own error."""
    script = FULL_DISK.format(write=WRITES[how])
    ran = subprocess.run([sys.executable, "-c", script, old], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "cannot write the file" in ran.stdout
    assert old.read_text() == "old"
    assert names(old.parent) == ["out.onnx"]


def missing_folder(tmp_path: Path) -> Path:
    return tmp_path / "nowhere" / "out.onnx"


def file_as_folder(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "out.onnx"


def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.mark.parametrize("place", [missing_folder, file_as_folder, folder])
def test_a_place_that_cannot_be_written_is_a_usage_error(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    path = place(tmp_path)
    before = names(tmp_path)
    with pytest.raises(UsageError):
        check_writable(path)
    with pytest.raises(UsageError), atomic_output(path):
        pytest.fail("the block must not run")
    assert names(tmp_path) == before


def test_a_folder_without_permission_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The superuser may write anywhere, so the refusal is simulated."""

    def refuse(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match="Permission denied"):
        check_writable(tmp_path / "out.onnx")


@posix
def test_a_device_is_not_replaced() -> None:
    with pytest.raises(UsageError, match="not a regular file"):
        check_writable("/dev/null")


def test_checking_leaves_no_trace(old: Path) -> None:
    check_writable(old)
    check_writable(old.with_name("other"))
    assert names(old.parent) == ["out.onnx"]
    assert old.read_text() == "old"


@posix
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_new_file_has_the_mode_that_open_gives(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "ours", "x")
        (tmp_path / "plain").write_text("x")
    finally:
        os.umask(before)
    assert mode(tmp_path / "ours") == mode(tmp_path / "plain")


@posix
def test_a_replaced_file_keeps_its_mode(old: Path) -> None:
    old.chmod(0o600)
    write_text(old, "new")
    assert (mode(old), old.read_text()) == (0o600, "new")


@posix
def test_a_link_stays_a_link(old: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(old)
    write_text(link, "new")
    assert link.is_symlink()
    assert old.read_text() == "new"


@posix
def test_links_in_a_circle_are_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UsageError):
        check_writable(tmp_path / "a" / "out")
    if sys.version_info < (3, 13):
        with pytest.raises(UsageError, match="in a circle"):
            check_writable(tmp_path / "a")


def test_long_names_and_other_scripts(tmp_path: Path) -> None:
    for name in ("n" * 250, "\N{GREEK SMALL LETTER ALPHA}" * 120):
        write_text(tmp_path / name, "\N{SNOWMAN}")
        assert (tmp_path / name).read_text(encoding="utf-8") == "\N{SNOWMAN}"
