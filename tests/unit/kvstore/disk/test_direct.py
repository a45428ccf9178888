from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from unit.kvstore.disk.making import opened, payload_of, put
from weir_kvstore.tiers.disk import Reads, direct
from weir_kvstore.tiers.disk.files import Files
from weir_kvstore.tiers.disk.geometry import PAGE_BYTES
from weir_kvstore.tiers.disk.segment import Segment

# Of a file, and of the memory that it is read into; whole pages and not.
_PLACES = st.integers(0, 3 * PAGE_BYTES) | st.integers(0, 3).map(lambda pages: pages * PAGE_BYTES)
_PIECES = st.lists(st.tuples(_PLACES, _PLACES.filter(bool)), min_size=1, max_size=8)
_FILE_BYTES = 30 * PAGE_BYTES + 77


def buffers(pieces: Sequence[tuple[int, int]]) -> list[memoryview]:
    """One for each (where it begins, its length); what is before it shows where somebody wrote who should not have."""
    return [memoryview(mmap.mmap(-1, start + size))[start:] for start, size in pieces]


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@pytest.fixture(scope="module")
def content() -> bytes:
    return payload_of(7, _FILE_BYTES)


@pytest.fixture(scope="module")
def fd(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a file that ends in the middle of a page, read past the cache where there is a way."""
    path = tmp_path_factory.mktemp("direct") / "file"
    path.write_bytes(content)
    fd = Files().open_direct(path) if direct.is_possible(Files(), path) else os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@given(_PLACES, _PIECES)
def test_whole_pages_of_the_file_are_read_into_whole_pages(position: int, pieces: list[tuple[int, int]]) -> None:
    into = buffers(pieces)
    plan = direct.plan(into, position)
    end = position + sum(map(len, into))
    lengths = [len(part) for part in plan.parts]
    assert plan.position % PAGE_BYTES == 0
    assert plan.position <= position < plan.position + PAGE_BYTES
    assert plan.position + plan.needed_bytes == end
    assert end <= plan.position + sum(lengths) < end + PAGE_BYTES
    assert all(length and length % PAGE_BYTES == 0 for length in lengths)
    assert all(address(part) % PAGE_BYTES == 0 for part in plan.parts if isinstance(part, memoryview))
    asides = [part for part in plan.parts if isinstance(part, range)]
    assert [part.start for part in asides] == [0, *(part.stop for part in asides)][: len(asides)]
    assert plan.aside_bytes == sum(map(len, asides))
    in_place = sum(len(part) for part in plan.parts if isinstance(part, memoryview))
    assert in_place + sum(len(span.into) for span in plan.spans) == end - position


@given(_PLACES, _PIECES)
def test_every_buffer_gets_its_bytes(fd: int, content: bytes, position: int, pieces: list[tuple[int, int]]) -> None:
    into = buffers(pieces)
    direct.read(fd, into, position)
    for view in into:
        assert view == content[position : position + len(view)]
        position += len(view)


def test_what_is_aligned_is_read_in_place() -> None:
    (whole,) = buffers([(0, 3 * PAGE_BYTES)])
    plan = direct.plan([whole], 2 * PAGE_BYTES)
    assert (plan.parts, plan.spans, plan.aside_bytes) == ([whole], [], 0)


def test_nothing_is_read_into_nothing(fd: int) -> None:
    direct.read(fd, [], 0)
    direct.read(fd, [memoryview(bytearray())], 100)


def test_a_file_may_end_within_its_last_page_and_not_before(fd: int, content: bytes) -> None:
    last = memoryview(bytearray(77))
    direct.read(fd, [last], 30 * PAGE_BYTES)
    assert last == content[-77:]
    for size, position in ((78, 30 * PAGE_BYTES), (2 * PAGE_BYTES, 30 * PAGE_BYTES), (1, 31 * PAGE_BYTES)):
        with pytest.raises(OSError, match="ends before") as failed:
            direct.read(fd, buffers([(0, size)]), position)
        assert failed.value.errno == errno.EIO


def test_more_buffers_than_the_kernel_takes_at_once(fd: int, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_MAX_PARTS", 3)
    into = buffers([(0, PAGE_BYTES)] * 10)
    direct.read(fd, into, PAGE_BYTES)
    assert b"".join(into) == content[PAGE_BYTES : 11 * PAGE_BYTES]


def test_short_answers_of_whole_pages_are_gone_on_from(
    fd: int, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: preadv(fd, [parts[0][:PAGE_BYTES]], at))
    into = buffers([(0, 3 * PAGE_BYTES + 5), (0, 2 * PAGE_BYTES)])
    direct.read(fd, into, 0)
    assert b"".join(into) == content[: 5 * PAGE_BYTES + 5]


class _Refusing(Files):
    """A file system that knows no O_DIRECT, or says so only when it is read."""

    def __init__(self, *, at: str) -> None:
        self.at, self.read_through_cache = at, 0

    def open_direct(self, path: Path) -> int:
        if self.at == "open":
            raise OSError(errno.EINVAL, "Invalid argument")
        return super().open_direct(path) if path.name == "FORMAT" else os.open(path, os.O_RDONLY)

    def read_direct(self, fd: int, into: Sequence[memoryview], offset: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    def read(self, fd: int, into: Sequence[memoryview], offset: int) -> None:
        self.read_through_cache += 1
        super().read(fd, into, offset)


@pytest.mark.parametrize("at", ["open", "read"])
async def test_where_it_cannot_be_blocks_are_read_through_the_cache_and_that_is_said_once(
    tmp_path: Path, at: str
) -> None:
    files = _Refusing(at=at)
    with capture_logs() as logs:
        async with opened(tmp_path, files=files) as (slots, _):
            for number in (1, 2):
                await put(slots, number, number)
            files.read_through_cache = 0
            assert await slots.read(2, 0, 5000) == payload_of(2)
            assert files.read_through_cache == 1
    assert [line["directory"] for line in logs if line["event"] == "disk_reads_buffered"] == [str(tmp_path)]


@pytest.mark.parametrize("reads", Reads)
async def test_each_way_is_the_one_that_was_asked_for(tmp_path: Path, reads: Reads) -> None:
    ways: list[str] = []

    class Telling(Files):
        def open_direct(self, path: Path) -> int:
            return os.open(path, os.O_RDONLY)  # whatever the file system is

        def read(self, fd: int, into: Sequence[memoryview], offset: int) -> None:
            ways.append("buffered")
            super().read(fd, into, offset)

        def read_direct(self, fd: int, into: Sequence[memoryview], offset: int) -> None:
            ways.append("direct")
            super().read_direct(fd, into, offset)

    async with opened(tmp_path, files=Telling(), reads=reads) as (slots, _):
        record = await put(slots, 1, 1)
        ways.clear()
        assert await slots.read(1, 3, 4000) == payload_of(1)[3:4003]
        assert await slots.read(1, 0, record.size_bytes) == payload_of(1)
    assert ways == [reads, reads]


def test_a_segment_that_cannot_be_opened_for_it_leaves_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Invalid argument"):
        Segment(_Refusing(at="open"), tmp_path / "segment-4096", 4096, direct=True)
    assert len(os.listdir("/proc/self/fd")) == before
