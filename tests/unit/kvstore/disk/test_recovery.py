from __future__ import annotations

from pathlib import Path

import pytest

from fakes.failing_files import FailingFiles
from unit.kvstore.disk.making import held, opened, payload_of, put, record_of
from weir_chassis.clock import SystemClock
from weir_kvstore.tiers.disk import SegmentSlots
from weir_kvstore.tiers.disk.files import Files
from weir_kvstore.tiers.disk.geometry import GROUP_SLOTS, charged_bytes, end_offset
from weir_kvstore.tiers.disk.header import SlotHeader, encode
from weir_kvstore.tiers.disk.segment import Segment

ROOM = charged_bytes(8192)


async def test_of_several_with_one_address_the_last_counts(tmp_path: Path) -> None:
    """The first was removed while somebody read it, and put again: both are whole."""
    async with opened(tmp_path) as (slots, _):
        await put(slots, 1, 7, size_bytes=5000)
        await put(slots, 2, 8)
        await put(slots, 3, 7, size_bytes=6000)
    async with opened(tmp_path) as (slots, recovered):
        assert await held(slots, recovered) == [8, 7]
        assert recovered[1].record.size_bytes == 6000
        assert slots.used_bytes == 2 * ROOM


async def test_with_less_capacity_the_oldest_go_and_the_files_shrink(tmp_path: Path) -> None:
    async with opened(tmp_path, 20 * ROOM) as (slots, _):
        for number in range(20):
            await put(slots, number, number)
    async with opened(tmp_path, 5 * ROOM) as (slots, recovered):
        assert await held(slots, recovered) == [15, 16, 17, 18, 19]
        assert slots.used_bytes == slots.capacity_bytes == 5 * ROOM
        slots.free(recovered[0].block_id)
        await put(slots, 100, 100)
        assert sum(file.stat().st_blocks * 512 for file in tmp_path.glob("segment-*")) <= 8 * ROOM  # tables too
    async with opened(tmp_path, 5 * ROOM) as (slots, recovered):
        assert await held(slots, recovered) == [16, 17, 18, 19, 100]


async def test_files_end_behind_their_last_block_and_go_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as (slots, _):
        for number in range(10):
            await put(slots, number, number)
        await put(slots, 10, 10, size_bytes=70_000)
        for number in range(3, 11):
            slots.free(number)
    async with opened(tmp_path):
        assert (tmp_path / "segment-8192").stat().st_size == end_offset(8192, 3)
        assert not (tmp_path / "segment-73728").exists()


async def test_a_header_that_the_index_does_not_name_is_cleared(tmp_path: Path) -> None:
    """Killed between the header and the log: nobody was told that it is committed, and the slot may be written over."""
    async with opened(tmp_path) as (slots, _):
        for number in range(3):
            await put(slots, number, number)
        slots.free(1)
    _write_header(tmp_path, 1, encode(SlotHeader(99, record_of(50, payload_of(50)), 0.0), 8192, 1))
    async with opened(tmp_path) as (slots, recovered):
        assert await held(slots, recovered) == [0, 2]
    (tmp_path / "index.log").unlink()
    async with opened(tmp_path) as (slots, recovered):
        assert await held(slots, recovered) == [0, 2]


async def test_generations_go_on_from_the_greatest_there_is(tmp_path: Path) -> None:
    for _ in range(3):
        async with opened(tmp_path) as (slots, _):
            await put(slots, 50, 50)
            slots.free(50)
        (tmp_path / "index.log").unlink(missing_ok=True)
    async with opened(tmp_path) as (slots, _):
        for number in range(3):
            await put(slots, 100 + number, number)
    (tmp_path / "index.log").unlink()
    async with opened(tmp_path) as (slots, recovered):
        assert await held(slots, recovered) == [0, 1, 2]
        await put(slots, 200, 9)
    async with opened(tmp_path) as (slots, recovered):
        assert await held(slots, recovered) == [0, 1, 2, 9]


async def test_a_generation_that_the_index_lost_is_no_later_commits(tmp_path: Path) -> None:
    """Its header was cleared, and a power loss may undo that: then the index must not name it by another's commit."""
    async with opened(tmp_path) as (slots, _):
        await put(slots, 1, 1)
    lost = encode(SlotHeader(3, record_of(50, payload_of(50)), 0.0), 8192, 1)
    _write_header(tmp_path, 1, lost)
    async with opened(tmp_path) as (slots, recovered):
        assert await held(slots, recovered) == [1]
        await put(slots, 2, 2)
        await put(slots, 3, 3)
    _write_header(tmp_path, 1, lost)
    async with opened(tmp_path) as (slots, recovered):
        assert await held(slots, recovered) == [1, 3]


def _write_header(path: Path, slot: int, raw: bytes) -> None:
    segment = Segment(Files(), path / "segment-8192", 8192)
    segment.write_header(slot, raw)
    segment.close()


async def test_a_table_that_cannot_be_read_costs_its_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with opened(tmp_path) as (slots, _):
        for number in range(GROUP_SLOTS + 6):
            await put(slots, number, number)
    reads = 0

    def first_table(name: str, file: str) -> bool:
        nonlocal reads
        reads += name == "read" and file.startswith("segment")
        return reads == 1 and name == "read" and file.startswith("segment")

    async with opened(tmp_path, files=FailingFiles(first_table)) as (slots, recovered):
        assert await held(slots, recovered) == list(range(GROUP_SLOTS, GROUP_SLOTS + 6))
    said = capsys.readouterr().out
    assert "disk_headers_unreadable" in said
    assert f"lost={GROUP_SLOTS}" in said


async def test_a_rebuilt_index_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with opened(tmp_path) as (slots, _):
        await put(slots, 1, 1)
    assert "disk_index_rebuilt" not in capsys.readouterr().out
    (tmp_path / "index.log").write_bytes(b"not an index")
    async with opened(tmp_path):
        pass
    lines = [line for line in capsys.readouterr().out.splitlines() if "disk_index_rebuilt_from_segments" in line]
    assert len(lines) == 1
    assert "its header does not match its checksum" in lines[0]


async def test_a_recovery_that_fails_may_be_tried_again(tmp_path: Path) -> None:
    broken = True
    async with opened(tmp_path) as (slots, _):
        await put(slots, 1, 1)
    files = FailingFiles(lambda name, file: broken and name == "write" and file == "index.new")
    slots = SegmentSlots(tmp_path, 10 * ROOM, SystemClock(), files=files)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            await slots.recover()
    broken = False
    assert await held(slots, list(await slots.recover())) == [1]
    await slots.close()
