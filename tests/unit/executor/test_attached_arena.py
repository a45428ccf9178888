"""What a store says of its arena is checked before a byte is touched, and what is read there before it counts."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from unit.executor.copiers import COPIERS, name_of
from weir_chassis.errors import DataCorrupt
from weir_chassis.mapped_memory import MappedMemory
from weir_executor.kv_transfer.attached_arena import AttachedArena, Place
from weir_executor.kv_transfer.copier import Copier, PlainCopier
from weir_executor.kv_transfer.private_buffers import PrivateBuffers

SIZE = 1 << 20


def make(directory: Path, arena_id: str = "a1", size_bytes: int = SIZE) -> Path:
    path = directory / f"weir-kvstore-{arena_id}"
    path.write_bytes(bytes(size_bytes))
    return path


@pytest.fixture(params=COPIERS, ids=name_of)
def copier(request: pytest.FixtureRequest) -> Copier:
    found: Copier = request.param
    return found


def place(offset: int, payload: bytes) -> Place:
    return Place(bytes(16), offset, xxh3_64_intdigest(payload))


def test_what_is_copied_in_can_be_copied_out(tmp_path: Path, copier: Copier) -> None:
    path = make(tmp_path)
    arena, buffers = AttachedArena("a1", path, SIZE, copier), PrivateBuffers()
    payloads = [bytes([i]) * 5000 for i in range(3)]
    offsets = [0, 70_000, SIZE - 5000]
    arena.copy_in(offsets, payloads)
    assert path.read_bytes()[70_000:75_000] == payloads[1]
    copied = arena.copy_out([place(*pair) for pair in zip(offsets, payloads, strict=True)], 5000, buffers)
    assert [bytes(payload) for payload in copied.payloads] == payloads
    assert copied.corrupt is None


def test_copies_do_not_change_with_the_arena(tmp_path: Path, copier: Copier) -> None:
    arena = AttachedArena("a1", make(tmp_path), SIZE, copier)
    arena.copy_in([0], [b"a" * 100])
    (payload,) = arena.copy_out([place(0, b"a" * 100)], 100, PrivateBuffers()).payloads
    arena.copy_in([0], [b"b" * 100])
    assert bytes(payload) == b"a" * 100


def test_pages_are_mapped_when_they_are_written_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the kernel could not: it is asked again then."""
    asked: list[tuple[int, int]] = []

    def populate(_memory: MappedMemory, start: int, size_bytes: int) -> bool:
        asked.append((start, size_bytes))
        return len(asked) > 1

    monkeypatch.setattr(MappedMemory, "populate", populate)
    arena, page = AttachedArena("a1", make(tmp_path), SIZE, PlainCopier()), b"x" * mmap.PAGESIZE
    last = SIZE - len(page)
    for offset, payload in ((last, page), (last, page), (last, page), (0, page), (1, b"x"), (1, page), (2, page)):
        arena.copy_in([offset], [payload])
    assert asked == [(last, len(page)), (last, len(page)), (0, len(page)), (1, len(page))]


def test_it_ends_at_the_first_that_does_not_verify(tmp_path: Path, copier: Copier) -> None:
    arena = AttachedArena("a1", make(tmp_path), SIZE, copier)
    arena.copy_in([0, 100, 200], [b"a" * 100, b"b" * 100, b"c" * 100])
    wrong = place(100, b"B" * 100)
    copied = arena.copy_out([place(0, b"a" * 100), wrong, place(200, b"c" * 100)], 100, PrivateBuffers())
    assert ([bytes(payload) for payload in copied.payloads], copied.corrupt) == ([b"a" * 100], wrong)


@pytest.mark.parametrize(("offset", "size"), [(SIZE - 99, 100), (SIZE, 1), (2**64 - 1, 100), (0, SIZE + 1)])
def test_places_outside_are_refused(tmp_path: Path, offset: int, size: int) -> None:
    arena = AttachedArena("a1", make(tmp_path), SIZE, PlainCopier())
    arena.require(SIZE - 100, 100)
    with pytest.raises(DataCorrupt):
        arena.require(offset, size)


def test_only_the_file_of_that_arena_is_mapped(tmp_path: Path) -> None:
    """Its name, its size, its owner: a store cannot make us write to any other file."""
    path = make(tmp_path)
    link = tmp_path / "weir-kvstore-link"
    link.symlink_to(path)
    os.mkfifo(tmp_path / "weir-kvstore-fifo")
    for arena_id, wrong, size in (
        ("a1", tmp_path / "weir-kvstore-other", SIZE),  # on another host, that is
        ("a2", path, SIZE),
        ("a1", path, SIZE - 1),
        ("a1", path, 2**62),
        ("link", link, SIZE),
        ("", tmp_path / "weir-kvstore-", 0),
    ):
        with pytest.raises(OSError):  # noqa: PT011  # any of them
            AttachedArena(arena_id, wrong, size, PlainCopier())
