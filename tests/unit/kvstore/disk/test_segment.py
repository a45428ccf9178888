from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.failing_files import FailingFiles
from unit.kvstore.disk.making import payload_of, record_of
from weir_kvstore.tiers.disk.files import Files
from weir_kvstore.tiers.disk.geometry import GROUP_SLOTS, end_offset, payload_offset
from weir_kvstore.tiers.disk.header import SlotHeader, decode, encode
from weir_kvstore.tiers.disk.segment import Segment, Segments

SLOT_BYTES = 8192


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[Segment]:
    segment = Segment(Files(), tmp_path / "segment", SLOT_BYTES)
    yield segment
    segment.close()


def read(segment: Segment, slot: int, size_bytes: int = SLOT_BYTES) -> bytes:
    into = bytearray(size_bytes)
    segment.read([memoryview(into)], payload_offset(SLOT_BYTES, slot))
    return bytes(into)


def header(slot: int) -> bytes:
    return encode(SlotHeader(slot + 1, record_of(slot, payload_of(slot)), 0.0), SLOT_BYTES, slot)


def test_room_is_taken_ahead_and_given_back(segment: Segment) -> None:
    segment.allocate(0, 10)
    assert segment.num_slots() == 10
    blocks = segment.path.stat().st_blocks
    assert blocks * 512 >= 10 * SLOT_BYTES
    segment.write(3, 0, payload_of(3, SLOT_BYTES))
    segment.punch(3)
    assert segment.path.stat().st_blocks * 512 <= blocks * 512 - SLOT_BYTES
    assert read(segment, 3) == bytes(SLOT_BYTES)
    segment.allocate(3, 4)
    assert segment.path.stat().st_blocks >= blocks
    segment.keep(2)
    assert segment.path.stat().st_size == end_offset(SLOT_BYTES, 2)


def test_headers_are_told_slot_by_slot_and_empty_ones_are_not(segment: Segment) -> None:
    segment.allocate(0, GROUP_SLOTS + 10)
    for slot in (0, 5, GROUP_SLOTS - 1, GROUP_SLOTS, GROUP_SLOTS + 9):
        segment.write_header(slot, header(slot))
    segment.clear_header(5)
    told = dict(segment.headers())
    assert list(told) == [0, GROUP_SLOTS - 1, GROUP_SLOTS, GROUP_SLOTS + 9]
    for slot, raw in told.items():
        found = decode(raw, SLOT_BYTES, slot)
        assert found is not None
        assert found.record == record_of(slot, payload_of(slot))


def test_room_that_cannot_be_had_whole_is_not_kept_in_part_and_no_header_is_lost(tmp_path: Path) -> None:
    class HalfFull(Files):
        """As a file system does that runs out of room on the way."""

        full = False

        def allocate(self, fd: int, offset: int, size_bytes: int) -> None:
            if not self.full:
                return super().allocate(fd, offset, size_bytes)
            super().allocate(fd, offset, size_bytes // 2)
            raise OSError(errno.ENOSPC, "full")

    files = HalfFull()
    segment = Segment(files, tmp_path / "segment", SLOT_BYTES)
    segment.allocate(0, GROUP_SLOTS)
    for slot in range(GROUP_SLOTS):
        segment.write_header(slot, header(slot))
    segment.punch(0)
    blocks = segment.path.stat().st_blocks
    files.full = True
    for first, stop in ((0, 1), (GROUP_SLOTS, 3 * GROUP_SLOTS)):
        with pytest.raises(OSError, match="full"):
            segment.allocate(first, stop)
    assert segment.path.stat().st_blocks <= blocks + GROUP_SLOTS  # at most a table
    assert [slot for slot, _ in segment.headers()] == list(range(GROUP_SLOTS))
    segment.close()


_WORK: dict[str, Callable[[Segment], None]] = {
    "write": lambda segment: segment.write(0, 0, b"x"),
    "punch": lambda segment: segment.punch(0),
    "sync": lambda segment: segment.sync(),
    "truncate": lambda segment: segment.keep(0),
}


@pytest.mark.parametrize("call", _WORK)
def test_what_the_file_system_refuses_is_raised(tmp_path: Path, call: str) -> None:
    segment = Segment(FailingFiles(lambda name, _: name == call), tmp_path / "segment", SLOT_BYTES)
    segment.allocate(0, 1)
    with pytest.raises(OSError, match="Input/output"):
        _WORK[call](segment)
    segment.close()


def test_a_write_beyond_the_slot_is_our_mistake(segment: Segment) -> None:
    with pytest.raises(AssertionError):
        segment.write(0, SLOT_BYTES - 1, b"ab")


def test_segments_are_opened_once_and_removed_with_their_file(tmp_path: Path) -> None:
    segments = Segments(Files(), lambda slot_bytes: tmp_path / f"segment-{slot_bytes}")
    assert segments[4096] is segments[4096]
    assert (tmp_path / "segment-4096").exists()
    segments.remove(4096)
    segments.remove(8192)  # never was one
    assert list(tmp_path.iterdir()) == []
    segments.close()
