"""The file that neighbours map: theirs to find while its owner lives, and not after."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from weir_chassis.mapped_memory import MappedMemory
from weir_kvstore.tiers.memory import ArenaMemory, own_memory, shared_memory

MIB = 1024 * 1024


def mapped(memory: ArenaMemory) -> mmap.mmap:
    """As a neighbour sees it."""
    assert memory.file is not None
    with open(memory.file.path, "r+b") as file:
        return mmap.mmap(file.fileno(), memory.file.size_bytes)


def files(directory: Path) -> Sequence[str]:
    return sorted(os.listdir(directory))


def test_a_neighbour_sees_what_is_written_and_writes_what_is_seen(tmp_path: Path) -> None:
    memory = shared_memory(tmp_path, "abc", MIB)
    neighbour = mapped(memory)
    memory.view[5:8] = b"one"
    assert neighbour[5:8] == b"one"
    neighbour[100:103] = b"two"
    assert bytes(memory.view[100:103]) == b"two"
    memory.close()


def test_only_its_user_may_open_it_and_its_name_is_its_identity(tmp_path: Path) -> None:
    memory = shared_memory(tmp_path, "abc", MIB)
    assert memory.file is not None
    assert (memory.file.arena_id, memory.file.path.name) == ("abc", "weir-kvstore-abc")
    assert memory.file.path.stat().st_mode & 0o777 == 0o600
    memory.close()


def test_closing_unlinks_it_and_whoever_has_it_keeps_it(tmp_path: Path) -> None:
    memory = shared_memory(tmp_path, "abc", MIB)
    neighbour = mapped(memory)
    memory.view[0] = 7
    memory.close()
    assert files(tmp_path) == []
    assert neighbour[0] == memory.view[0] == 7
    assert memory.file is None


def _leave_behind(directory: Path, arena_id: str, size_bytes: int) -> None:
    """As a store that is killed."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom weir_kvstore.tiers.memory import shared_memory\n"
        "memory = shared_memory(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))\nos._exit(9)"
    )
    command = [sys.executable, "-c", script, str(directory), arena_id, str(size_bytes)]
    done = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": _path()})
    assert done.returncode == 9


def test_files_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    _leave_behind(tmp_path, "dead", 4096)
    (tmp_path / "somebody-elses").touch()
    assert files(tmp_path) == ["somebody-elses", "weir-kvstore-dead"]
    living = shared_memory(tmp_path, "living", MIB)
    assert files(tmp_path) == ["somebody-elses", "weir-kvstore-living"]
    other = shared_memory(tmp_path, "other", MIB)
    assert files(tmp_path) == ["somebody-elses", "weir-kvstore-living", "weir-kvstore-other"]
    living.close()
    other.close()


def test_a_file_of_the_dead_that_fits_is_taken_over_by_one(tmp_path: Path) -> None:
    _leave_behind(tmp_path, "dead", MIB)
    left = (tmp_path / "weir-kvstore-dead").stat().st_ino
    memory, other = shared_memory(tmp_path, "abc", MIB), shared_memory(tmp_path, "def", MIB)
    assert files(tmp_path) == ["weir-kvstore-abc", "weir-kvstore-def"]
    assert memory.file is not None
    assert memory.file.path.stat().st_ino == left
    memory.view[5:8] = b"one"
    assert mapped(memory)[5:8] == b"one"
    memory.close()
    other.close()
    assert files(tmp_path) == []


def _path() -> str:
    return os.pathsep.join(path for path in sys.path if path)


def test_a_link_in_the_directory_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    (tmp_path / "weir-kvstore-link").symlink_to(target)
    shared_memory(tmp_path, "abc", MIB).close()
    assert target.exists()


def test_without_the_directory_or_with_too_little_of_it_memory_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capture_logs() as logs:
        assert shared_memory(None, "abc", MIB).file is None
    assert logs == []  # it was asked for
    with capture_logs() as logs:
        assert shared_memory(tmp_path / "missing", "abc", MIB).file is None
    assert [line["event"] for line in logs] == ["no_shared_memory"]
    small = os.statvfs_result((4096, 4096, 16384, 16384, 255, 0, 0, 0, 0, 255))  # 64 MiB in all, 1020 KiB free
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    with capture_logs() as logs:
        private = shared_memory(tmp_path, "abc", 2 * MIB)
    assert (private.file, files(tmp_path)) == (None, [])
    assert logs[0]["reason"] == "1044480 bytes are free"
    private.view[0] = 1


def test_populated_memory_is_there(tmp_path: Path) -> None:
    memory = shared_memory(tmp_path, "abc", MIB)
    assert memory.file is not None
    assert memory.populate(4096 + 10, 300 * 1024)
    assert memory.file.path.stat().st_blocks * 512 >= 300 * 1024
    memory.close()
    assert own_memory(MIB).populate(0, MIB)


def test_without_the_newer_call_the_file_is_allocated_or_it_is_said_that_it_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MappedMemory, "populate", lambda *_: False)
    memory = shared_memory(tmp_path, "abc", MIB)
    assert memory.file is not None
    assert memory.populate(0, 100_000)
    assert memory.file.path.stat().st_blocks * 512 >= 100_000

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert not memory.populate(0, 100_000)
    memory.close()
    assert own_memory(MIB).populate(0, MIB)  # the kernel finds it when it is written
