"""What becomes of commits and frees when the disk fails under them, seen through the slots that use the journal."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fakes.failing_files import FailingFiles
from unit.kvstore.disk.making import held, opened, payload_of, put, record_of
from weir_kvstore.tiers.disk import Fsync, SegmentSlots


class Faults:
    """Which call on which file fails now."""

    def __init__(self) -> None:
        self.now: tuple[str, str] | None = None
        self.calls: list[tuple[str, str]] = []
        self.files = FailingFiles(self._fails)

    def _fails(self, name: str, file: str) -> bool:
        self.calls.append((name, file.split("-", maxsplit=1)[0]))
        return self.calls[-1] == self.now


async def _written(slots: SegmentSlots, number: int) -> None:
    assert slots.claim(number, 5000)
    await slots.write(number, 0, payload_of(number))


async def _commit(slots: SegmentSlots, number: int) -> None:
    await slots.commit(number, record_of(number, payload_of(number)))


async def test_commits_that_wait_together_share_their_syncs(tmp_path: Path) -> None:
    faults = Faults()
    async with opened(tmp_path, fsync=Fsync.COMMIT_BATCH, files=faults.files) as (slots, _):
        for number in range(50):
            await _written(slots, number)
        faults.calls.clear()
        await asyncio.gather(*(_commit(slots, number) for number in range(50)))
        syncs = [call for call in faults.calls if call[0] == "sync"]
        assert len(syncs) <= 4, "the first may go alone, and the others together"
        assert faults.calls[-1] == ("sync", "index.log"), "nothing returns before it"


async def test_without_fsync_nothing_is_synced(tmp_path: Path) -> None:
    faults = Faults()
    async with opened(tmp_path, files=faults.files) as (slots, _):
        faults.calls.clear()
        await put(slots, 1, 1)
        slots.free(1)
        await put(slots, 2, 2)
        assert not [call for call in faults.calls if call[0] == "sync"]


@pytest.mark.parametrize(
    "fault", [("write", "segment"), ("sync", "segment"), ("write", "index.log"), ("sync", "index.log")]
)
async def test_a_commit_that_fails_is_no_commit(tmp_path: Path, fault: tuple[str, str]) -> None:
    faults = Faults()
    async with opened(tmp_path, fsync=Fsync.COMMIT_BATCH, files=faults.files) as (slots, _):
        await put(slots, 1, 1)
        await _written(slots, 2)
        faults.now = fault
        with pytest.raises(OSError, match="Input/output"):
            await _commit(slots, 2)
        slots.free(2)
        await asyncio.sleep(0.01)  # the free is tried, and fails with the rest
        faults.now = None
        await put(slots, 3, 3)
    async with opened(tmp_path) as (slots, recovered):
        assert await held(slots, recovered) == [1, 3]


async def test_a_slot_whose_free_cannot_be_written_is_not_written_over(tmp_path: Path) -> None:
    faults = Faults()
    capacity_bytes = 10_000  # one slot
    async with opened(tmp_path, capacity_bytes, files=faults.files) as (slots, _):
        await put(slots, 1, 1)
        faults.now = ("write", "index.log")
        slots.free(1)
        assert slots.claim(2, 5000)
        with pytest.raises(OSError, match="Input/output"):
            await slots.write(2, 0, payload_of(2))
        slots.free(2)
        faults.now = None
        faults.calls.clear()
        await put(slots, 3, 3)
        order = [file for name, file in faults.calls if name == "write"]
        assert order.index("index.log") < order.index("segment"), "the free, then the bytes"
    async with opened(tmp_path, capacity_bytes) as (slots, recovered):
        assert await held(slots, recovered) == [3]


async def test_frees_that_never_could_be_written_bring_whole_blocks_back(tmp_path: Path) -> None:
    faults = Faults()
    async with opened(tmp_path, files=faults.files) as (slots, _):
        await put(slots, 1, 1)
        faults.now = ("write", "index.log")
        slots.free(1)
    async with opened(tmp_path) as (slots, recovered):
        assert await held(slots, recovered) == [1]


async def test_a_cancelled_commit_and_its_free_leave_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as (slots, _):
        await put(slots, 1, 1)
        await _written(slots, 2)
        committing = asyncio.create_task(_commit(slots, 2))
        await asyncio.sleep(0)
        committing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await committing
        slots.free(2)
    async with opened(tmp_path) as (slots, recovered):
        assert await held(slots, recovered) == [1]
