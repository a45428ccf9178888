from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.failing_files import FailingFiles
from unit.kvstore.disk.making import MIB
from weir_kvstore.tiers.disk.files import Files
from weir_kvstore.tiers.disk.geometry import payload_offset
from weir_kvstore.tiers.disk.reads import Read, Reader, requests
from weir_kvstore.tiers.disk.segment import Segment

_PLACES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), max_size=60)


@pytest.fixture
def segment(tmp_path: Path) -> Segment:
    return _segment(tmp_path, Files())


def _segment(path: Path, files: Files) -> Segment:
    segment = Segment(files, path / "segment-4096", 4096)
    for slot in range(100):
        segment.write(slot, 0, bytes([slot]) * 4096)
    return segment


async def _on_thread(work: Callable[[], None]) -> None:
    await asyncio.to_thread(work)


@given(_PLACES)
def test_requests_are_the_same_reads_in_order_and_in_bounds(places: list[tuple[int, int]]) -> None:
    class Stand:
        slot_bytes = 4096

    stand, zeros = Stand(), memoryview(bytes(4 * MIB))
    reads = [Read(stand, at * 65536, zeros[: size * 65536], None) for at, size in places]  # type: ignore[arg-type]
    found = requests(reads)
    assert sorted(map(id, reads)) == sorted(id(read) for request in found for read in request)
    for request in found:
        assert request[-1].end - request[0].position <= 4 * MIB
        for before, read in pairwise(request):
            assert before.end <= read.position <= before.end + 65536


async def test_neighbours_are_read_together_over_gaps_and_tables(segment: Segment) -> None:
    calls: list[int] = []
    read = segment.read

    def counted(into: Sequence[memoryview], position: int) -> None:
        calls.append(position)
        read(into, position)

    segment.read = counted  # type: ignore[method-assign]
    reader = Reader(_on_thread)
    slots = [70, 3, 2, 5, 63, 64, 99]
    buffers = {slot: bytearray(1000) for slot in slots}
    await asyncio.gather(
        *(reader.read(segment, payload_offset(4096, slot) + 7, memoryview(buffers[slot])) for slot in slots)
    )
    assert buffers == {slot: bytes([slot]) * 1000 for slot in slots}
    assert calls == [payload_offset(4096, slot) + 7 for slot in (2, 63, 99)]
    segment.close()


async def test_a_bad_place_fails_its_own_block_only(tmp_path: Path) -> None:
    bad = payload_offset(4096, 4)

    class BadPlace(Files):
        def read(self, fd: int, into: object, offset: int) -> None:
            length = sum(map(len, into))  # type: ignore[call-overload]
            if offset <= bad < offset + length:
                raise OSError(errno.EIO, "bad place")
            super().read(fd, into, offset)  # type: ignore[arg-type]

    segment = _segment(tmp_path, BadPlace())
    reader = Reader(_on_thread)
    buffers = [bytearray(4096) for _ in range(8)]
    outcomes = await asyncio.gather(
        *(reader.read(segment, payload_offset(4096, slot), memoryview(b)) for slot, b in enumerate(buffers)),
        return_exceptions=True,
    )
    assert [isinstance(outcome, OSError) for outcome in outcomes] == [slot == 4 for slot in range(8)]
    assert all(buffers[slot] == bytes([slot]) * 4096 for slot in range(8) if slot != 4)
    segment.close()


async def test_a_file_that_ends_early_is_an_error(segment: Segment) -> None:
    with pytest.raises(OSError, match="ends before"):
        await Reader(_on_thread).read(segment, payload_offset(4096, 99), memoryview(bytearray(4097)))
    segment.close()


def test_faults_are_injected_by_name_and_file(tmp_path: Path) -> None:
    files = FailingFiles(lambda name, file: name == "write" and file == "x")
    for name, fails in (("x", True), ("y", False)):
        fd = files.open(tmp_path / name)
        try:
            files.write(fd, b"1", 0)
            assert not fails
        except OSError:
            assert fails
        files.close(fd)
