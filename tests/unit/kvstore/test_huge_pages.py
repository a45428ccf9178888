"""An arena of huge pages: as many as it takes, or a refusal that says what to do."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from weir_chassis.settings import SettingsError
from weir_executor.kv_transfer.attached_arena import AttachedArena, Place
from weir_executor.kv_transfer.copier import load_copier
from weir_executor.kv_transfer.private_buffers import PrivateBuffers
from weir_kvstore.assembly import make_arena
from weir_kvstore.checksum import checksum
from weir_kvstore.settings import KvStoreSettings
from weir_kvstore.tiers import huge_pages
from weir_kvstore.tiers.arena import ArenaSlots
from weir_kvstore.tiers.huge_pages import HugePagesError, Pool, page_bytes, read_pool, refusal
from weir_kvstore.tiers.memory import shared_memory

MIB = 1024 * 1024
BLOCK_BYTES = 368 * 1024


@pytest.fixture
def mount() -> Iterator[Path]:
    """A directory of real huge pages, of which some are free."""
    mounts = [Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines() if " hugetlbfs " in line]
    writable = [path for path in mounts if os.access(path, os.W_OK)]
    for path in writable:
        size = page_bytes(path)
        if size is not None and size <= 2 * MIB and read_pool(size).free >= 8:
            with _alone(path), TemporaryDirectory(dir=path) as directory:
                yield Path(directory)
            return
    pytest.skip("no mount of hugetlbfs here that this user may write to, with 8 free pages of 2 MiB (vm.nr_hugepages)")


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Tests that count what is free take turns, those of other processes too."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any directory has them, and nobody has set one aside."""
    monkeypatch.setattr(huge_pages, "page_bytes", lambda _: 2 * MIB)
    monkeypatch.setattr(huge_pages, "read_pool", lambda size_bytes: Pool(size_bytes, 4, 1))


async def test_neighbours_move_blocks_through_it(mount: Path) -> None:
    slots = ArenaSlots(8 * MIB, partial(shared_memory, mount, "a1"))  # and 2 MiB more
    shared = slots.shared
    assert shared is not None
    assert shared.size_bytes == shared.path.stat().st_size == 10 * MIB
    assert read_pool(2 * MIB).total >= 5
    arena = AttachedArena(shared.arena_id, shared.path, shared.size_bytes, load_copier())
    payloads = [os.urandom(BLOCK_BYTES) for _ in range(22)]
    for block_id, payload in enumerate(payloads):
        assert slots.claim(block_id, BLOCK_BYTES)
        if block_id % 2:
            await slots.write(block_id, 0, payload)
        else:
            arena.copy_in([slots.offset(block_id)], [payload])
    places = [Place(bytes(16), slots.offset(number), checksum(payload)) for number, payload in enumerate(payloads)]
    copied = arena.copy_out(places, BLOCK_BYTES, PrivateBuffers())
    assert [bytes(payload) for payload in copied.payloads] == payloads
    assert [bytes(await slots.read(number, 0, BLOCK_BYTES)) for number in range(22)] == payloads
    await slots.close()


def test_all_its_pages_are_reserved_and_none_is_taken_before_it_is_needed(mount: Path) -> None:
    before = read_pool(2 * MIB).free
    memory = shared_memory(mount, "a1", 7 * MIB)
    assert memory.file is not None
    assert (read_pool(2 * MIB).free, len(memory.view)) == (before - 4, 8 * MIB)
    assert memory.file.path.stat().st_blocks == 0
    assert memory.populate(3 * MIB + 5, 100)
    assert memory.file.path.stat().st_blocks * 512 == 2 * MIB
    memory.close()


def test_the_next_store_has_the_pages_that_neighbours_of_the_last_one_still_map(mount: Path) -> None:
    before = read_pool(2 * MIB).free
    script = (
        "import sys\nfrom pathlib import Path\nfrom weir_kvstore.tiers.memory import shared_memory\n"
        "shared_memory(Path(sys.argv[1]), 'a1', 8 << 20).close()"
    )
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run([sys.executable, "-c", script, str(mount)], check=True, env={**os.environ, "PYTHONPATH": path})
    neighbour = AttachedArena("a1", mount / "weir-kvstore-a1", 8 * MIB, load_copier())
    following = shared_memory(mount, "a2", 8 * MIB)
    assert [path.name for path in mount.iterdir()] == ["weir-kvstore-a2"]
    neighbour.copy_in([0], [b"late"])
    assert bytes(following.view[:4]) == b"late"  # as whoever maps an arena can
    assert read_pool(2 * MIB).free == before - 4
    following.close()


def test_more_than_there_are_is_refused_at_once(mount: Path) -> None:
    pool = read_pool(2 * MIB)
    with pytest.raises(HugePagesError, match=f"Cannot allocate memory; {pool.free + 1} huge pages of 2048 KiB"):
        shared_memory(mount, "a1", pool.free * 2 * MIB + 1)
    assert list(mount.iterdir()) == []


@pytest.mark.usefixtures("pretended")
async def test_sizes_are_whole_pages_and_all_of_it_is_used(tmp_path: Path) -> None:
    slots = ArenaSlots(3 * MIB, partial(shared_memory, tmp_path, "a1"))
    assert slots.shared is not None
    assert slots.shared.size_bytes == slots.shared.path.stat().st_size == 6 * MIB
    assert slots.claim(1, 3 * MIB)
    slots.check_integrity()
    await slots.close()
    assert [path.name for path in tmp_path.iterdir()] == ["weir-kvstore-a1"]  # for the next one to take over


@pytest.mark.usefixtures("pretended")
def test_a_store_that_does_not_get_them_does_not_start_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: int) -> mmap.mmap:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", short)
    settings = KvStoreSettings.model_validate({"arena_dir": tmp_path, "capacity_bytes": 16 * MIB})
    with pytest.raises(SettingsError) as refused:
        make_arena(settings.tiers(), settings, "a1")
    assert str(refused.value) == (
        f"WEIR_KVSTORE_ARENA_DIR: no arena in {tmp_path}: Cannot allocate memory; 10 huge pages of 2048 KiB are wanted "
        "(the capacity, and an eighth more), 1 of 4 (nr_hugepages) are free: write 13 to "
        "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages, lower WEIR_KVSTORE_CAPACITY_BYTES (max_bytes of RAM "
        "in the file of tiers), or name another directory"
    )
    assert list(tmp_path.iterdir()) == []


def test_where_pages_are_free_the_reason_is_another_one() -> None:
    text = refusal(Path("/huge"), 2 * MIB, Pool(2 * MIB, 9, 9), "Permission denied")
    assert "Permission denied" in text
    assert "write " not in text


def test_the_pool_is_what_the_kernel_counts(tmp_path: Path) -> None:
    directory = tmp_path / "hugepages-2048kB"
    directory.mkdir()
    counts = {
        "nr_hugepages": 100,
        "free_hugepages": 60,
        "resv_hugepages": 20,
        "nr_overcommit_hugepages": 8,
        "surplus_hugepages": 3,
    }
    for name, count in counts.items():
        (directory / name).write_text(f"{count}\n")
    assert read_pool(2 * MIB, tmp_path) == Pool(2 * MIB, 100, 45)
    assert read_pool(1024 * MIB, tmp_path) == Pool(1024 * MIB, 0, 0)


def test_other_directories_have_none(tmp_path: Path) -> None:
    assert page_bytes(tmp_path) is None
    assert page_bytes(tmp_path / "missing") is None
