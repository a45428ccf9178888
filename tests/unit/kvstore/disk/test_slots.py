from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fakes.failing_files import FailingFiles
from unit.kvstore.disk.making import MIB, held, opened, payload_of, put, record_of
from weir_chassis.testing import VirtualClock, settle
from weir_kvstore.record import Bytes
from weir_kvstore.tiers.disk import Fsync
from weir_kvstore.tiers.disk import slots as module
from weir_kvstore.tiers.disk.files import Files
from weir_kvstore.tiers.disk.geometry import charged_bytes


async def test_bytes_come_back_in_any_range(tmp_path: Path) -> None:
    async with opened(tmp_path) as (slots, recovered):
        assert recovered == []
        await put(slots, 1, 1, 5000)
        await put(slots, 2, 2, 100)
        payload = payload_of(1, 5000)
        assert await slots.read(1, 0, 5000) == payload
        assert await slots.read(1, 4000, 999) == payload[4000:4999]
        into = bytearray(30)
        await slots.read_into(1, 17, memoryview(into)[5:25])
        assert into == bytes(5) + payload[17:37] + bytes(5)
        assert await slots.read(2, 0, 100) == payload_of(2, 100)


@pytest.mark.parametrize("fsync", Fsync)
async def test_what_was_committed_and_not_freed_is_found_again_in_order(tmp_path: Path, fsync: Fsync) -> None:
    clock = VirtualClock()
    async with opened(tmp_path, fsync=fsync, clock=clock) as (slots, _):
        for number in (5, 3, 9, 7):
            await put(slots, number, number, size_bytes=1000 * number)
        slots.free(3)
        assert slots.claim(4, 5000)
        await slots.write(4, 0, payload_of(4))  # never committed
        stored_at = clock.time()
    await clock.advance(100)
    async with opened(tmp_path, fsync=fsync, clock=clock) as (slots, recovered):
        assert await held(slots, recovered) == [5, 9, 7]
        assert [found.block_id for found in recovered] == [1, 2, 3]
        assert {found.stored_at for found in recovered} == {stored_at}
        assert slots.used_bytes == 2 * charged_bytes(8192) + charged_bytes(12288)


async def test_many_restarts_lose_and_revive_nothing(tmp_path: Path) -> None:
    expected: list[int] = []
    for start in range(6):
        async with opened(tmp_path) as (slots, recovered):
            assert await held(slots, recovered) == expected
            for number in range(start * 10, start * 10 + 10):
                await put(slots, 1000 + number, number)
            for found in recovered[::2]:
                slots.free(found.block_id)
            expected = expected[1::2] + list(range(start * 10, start * 10 + 10))


async def test_room_is_claimed_before_it_is_filled_and_freed_exactly(tmp_path: Path) -> None:
    room = charged_bytes(4096)
    async with opened(tmp_path, 3 * room) as (slots, _):
        assert all(slots.claim(number, 4096) for number in (1, 2, 3))
        assert slots.used_bytes == slots.capacity_bytes == 3 * room
        assert not slots.claim(4, 1)
        slots.free(2)
        assert slots.used_bytes == 2 * room
        assert not slots.claim(4, 4097)
        assert slots.claim(4, 1)


async def test_the_room_of_one_size_goes_to_another_and_the_files_stay_bounded(tmp_path: Path) -> None:
    async with opened(tmp_path, MIB) as (slots, _):
        for size_bytes in (4096, 65536, 8192, 200_000, 4096):
            numbers: list[int] = []
            while slots.claim(number := len(numbers) + 1, size_bytes):
                await slots.write(number, 0, payload_of(number, size_bytes))
                await slots.commit(number, record_of(number, payload_of(number, size_bytes)))
                numbers.append(number)
            assert len(numbers) == MIB // charged_bytes(-(-size_bytes // 4096) * 4096)
            # What is left of holes is their headers, and the file system's own notes of them.
            assert _segment_bytes(tmp_path) <= 1.25 * MIB
            for number in numbers:
                assert await slots.read(number, 0, size_bytes) == payload_of(number, size_bytes)
                slots.free(number)


async def test_a_chain_lies_in_sequence_and_is_read_in_few_requests(tmp_path: Path) -> None:
    requests = 0

    def count(name: str, file: str) -> bool:
        nonlocal requests
        requests += name == "read" and file.startswith("segment")
        return False

    async with opened(tmp_path, 64 * MIB, files=FailingFiles(count)) as (slots, _):
        for number in range(200):
            await put(slots, number, number, 65536)
        buffers = [bytearray(65536) for _ in range(200)]
        requests = 0
        await asyncio.gather(*(slots.read_into(n, 0, memoryview(buffer)) for n, buffer in enumerate(buffers)))
        assert all(buffer == payload_of(number, 65536) for number, buffer in enumerate(buffers))
        assert requests == 4  # 12.5 MiB in requests of up to 4


async def test_a_full_file_system_leaves_what_there_is_and_is_asked_again(tmp_path: Path) -> None:
    clock = VirtualClock()
    full = False
    files = FailingFiles(lambda name, file: full and name == "allocate" and file.startswith("segment"), errno.ENOSPC)
    async with opened(tmp_path, 64 * charged_bytes(8192), files=files, clock=clock) as (slots, _):
        await put(slots, 1, 1)
        full = True
        numbers = [1]
        while slots.claim(number := numbers[-1] + 1, 5000):
            await slots.write(number, 0, payload_of(number))
            numbers.append(number)
        assert len(numbers) == 5  # the four of the first step, and one that took the last free page by itself
        assert slots.capacity_bytes == slots.used_bytes == 5 * charged_bytes(8192)
        slots.free(2)
        await put(slots, 99, 99)  # in its place
        full = False
        assert not slots.claim(100, 5000)
        await clock.advance(60)
        assert slots.capacity_bytes == 64 * charged_bytes(8192)
        await put(slots, 100, 100)


async def test_a_block_without_room_on_disk_is_refused_and_its_slot_not_used_again(tmp_path: Path) -> None:
    full = False

    def fails(name: str, file: str) -> bool:
        return full and name in {"allocate", "write"} and file.startswith("segment")

    async with opened(tmp_path, 64 * charged_bytes(8192), files=FailingFiles(fails, errno.ENOSPC)) as (slots, _):
        for number in range(4):
            await put(slots, number, number)
        full = True
        assert slots.claim(4, 5000)
        with pytest.raises(OSError, match="No space left"):
            await slots.write(4, 0, payload_of(4))
        slots.free(4)
        assert slots.capacity_bytes == slots.used_bytes == 4 * charged_bytes(8192)
        assert not slots.claim(5, 5000)
        assert await slots.read(3, 0, 5000) == payload_of(3)


def test_a_limit_on_the_length_of_files_is_a_full_disk_too(tmp_path: Path) -> None:
    """In a process of its own, for the limit holds for all of a process's files."""
    script = (
        "import asyncio, resource, sys; from pathlib import Path\n"
        "from unit.kvstore.disk.making import opened, payload_of, put\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))\n"
        "async def main():\n"
        "    async with opened(Path(sys.argv[1]), 8 << 20) as (slots, _):\n"
        "        stored = 0\n"
        "        while slots.capacity_bytes - slots.used_bytes > 70_000:\n"
        "            await put(slots, stored, stored, 65536)\n"
        "            stored += 1\n"
        "        for number in range(stored):\n"
        "            assert await slots.read(number, 0, 65536) == payload_of(number, 65536)\n"
        "        print(stored)\n"
        "asyncio.run(main())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.splitlines()[-1]) in range(40, 48)


def _segment_bytes(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.glob("segment-*"))


class _Stalling(Files):
    """Reads and writes of segments wait until they may go on."""

    def __init__(self) -> None:
        self._may_go_on = threading.Event()
        self._waits = threading.Event()
        self.go_on()

    def stall(self) -> None:
        self._waits.clear()
        self._may_go_on.clear()

    def go_on(self) -> None:
        self._may_go_on.set()

    async def until_somebody_waits(self) -> None:
        assert await asyncio.to_thread(self._waits.wait, 60)

    def write(self, fd: int, data: Bytes, offset: int) -> None:
        if "segment" in os.readlink(f"/proc/self/fd/{fd}"):
            self._wait()
        super().write(fd, data, offset)

    def read(self, fd: int, into: Sequence[memoryview], offset: int) -> None:
        self._wait()
        super().read(fd, into, offset)

    def read_direct(self, fd: int, into: Sequence[memoryview], offset: int) -> None:
        self._wait()
        super().read_direct(fd, into, offset)

    def _wait(self) -> None:
        if not self._may_go_on.is_set():
            self._waits.set()
            self._may_go_on.wait(60)  # longer than a busy machine lets a test wait


async def test_a_slot_is_nobody_elses_while_a_thread_is_at_it(tmp_path: Path) -> None:
    """Its writer has been cancelled and the block freed: the late bytes must not fall on the next block."""
    files = _Stalling()
    async with opened(tmp_path, 2 * charged_bytes(8192), files=files) as (slots, _):
        await put(slots, 1, 1)
        assert slots.claim(2, 5000)
        files.stall()
        writing = asyncio.create_task(slots.write(2, 0, payload_of(2)))
        await files.until_somebody_waits()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        slots.free(2)
        assert not slots.claim(3, 5000)
        files.go_on()
        while not slots.claim(3, 5000):
            await asyncio.sleep(0.001)
        await slots.write(3, 0, payload_of(3))
        assert await slots.read(3, 0, 5000) == payload_of(3)


async def test_a_cancelled_read_ends_when_nobody_writes_into_its_memory(tmp_path: Path) -> None:
    files = _Stalling()
    async with opened(tmp_path, files=files) as (slots, _):
        await put(slots, 1, 1)
        files.stall()
        into = bytearray(5000)
        reading = asyncio.create_task(slots.read_into(1, 0, memoryview(into)))
        await files.until_somebody_waits()
        reading.cancel()
        await settle()
        assert not reading.done()
        slots.free(1)
        assert slots.used_bytes, "the thread still reads from it"
        files.go_on()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert into == payload_of(1)
        assert slots.used_bytes == 0


async def test_a_disk_that_hangs_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLOSE_SECONDS", 0.01)
    files = _Stalling()
    async with opened(tmp_path, files=files) as (slots, _):
        await put(slots, 1, 1)
        files.stall()
        reading = asyncio.create_task(slots.read(1, 0, 5000))
        await files.until_somebody_waits()
    assert not reading.done()
    files.go_on()
    assert await reading == payload_of(1)


async def test_what_is_hidden_and_settled_is_not_found_by_whoever_comes_after_a_kill(tmp_path: Path) -> None:
    async with opened(tmp_path / "killed") as (slots, _):
        await put(slots, 1, 1)
        await put(slots, 2, 2)
        slots.hide(1)
        await slots.settle()
        await put(slots, 3, 3)
        assert await slots.read(1, 0, 5000) == payload_of(1), "nobody else got its slot"
        shutil.copytree(tmp_path / "killed", tmp_path / "left")
    async with opened(tmp_path / "left") as (slots, recovered):
        assert await held(slots, recovered) == [2, 3]


async def test_our_own_mistakes_are_asserted(tmp_path: Path) -> None:
    async with opened(tmp_path) as (slots, _):
        await put(slots, 1, 1)
        with pytest.raises(AssertionError):
            slots.claim(1, 5000)
        with pytest.raises(AssertionError):
            await slots.read(1, 1, 5000)
        with pytest.raises(AssertionError):
            await slots.write(1, 0, b"committed")
        assert slots.claim(2, 10)
        with pytest.raises(AssertionError):
            await slots.write(2, 5, b"123456")
        with pytest.raises(KeyError):
            slots.free(3)


async def test_what_is_too_much_after_shrinking_goes_back_to_the_file_system_also_when_nobody_writes(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, 8 * MIB) as (slots, _):
        for number in range(1, 61):
            await put(slots, number, number, 65_536)
        full = _disk_bytes(tmp_path)
        slots.resize(MIB)
        for number in range(11, 61):
            slots.free(number)
        await eventually(lambda: _disk_bytes(tmp_path) < full / 3)
        assert slots.used_bytes <= slots.capacity_bytes == MIB
        slots.resize(16 * MIB)
        for number in range(61, 181):
            await put(slots, number, number, 65_536)
        assert slots.used_bytes > 8 * MIB
    async with opened(tmp_path, 16 * MIB) as (slots, recovered):
        assert await held(slots, recovered) == [*range(1, 11), *range(61, 181)]


def _disk_bytes(path: Path) -> int:
    return sum(512 * segment.stat().st_blocks for segment in path.glob("segment-*"))


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)
