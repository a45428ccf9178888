"""Bytes go where they are told, nowhere else, and memory lives as long as a view of it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from weir_chassis.mapped_memory import MappedMemory, private_memory

KIB = 1024


def test_copies() -> None:
    source, target = private_memory(64 * KIB), private_memory(64 * KIB)
    source.copy_in(100, b"payload")
    assert bytes(source.view()[98:109]) == b"\0\0payload\0\0"
    target.copy_from(5, source, 102, 5)
    assert bytes(target.view()[:12]) == b"\0" * 5 + b"yload" + b"\0" * 2


def test_a_copy_past_an_end_is_our_mistake() -> None:
    small, big = private_memory(4 * KIB), private_memory(8 * KIB)
    for wrong in (
        lambda: small.copy_in(4 * KIB - 1, b"ab"),
        lambda: small.copy_in(-1, b"ab"),
        lambda: small.copy_from(0, big, 0, 4 * KIB + 1),
        lambda: big.copy_from(0, small, 1, 4 * KIB),
        lambda: small.address(1, 4 * KIB),
        lambda: small.populate(0, 4 * KIB + 1),
    ):
        with pytest.raises(AssertionError):
            wrong()


def test_memory_outlives_its_object_in_a_view() -> None:
    memory = private_memory(64 * KIB)
    view = memory.view()
    ended: list[str] = []
    weakref.finalize(view.obj, ended.append, "gone")
    part = view[10:20].toreadonly()
    memory.copy_in(10, b"0123456789")
    del memory, view
    gc.collect()
    assert (bytes(part), ended) == (b"0123456789", [])
    del part
    assert ended == ["gone"]


def test_populated_memory_is_resident() -> None:
    memory = private_memory(1024 * KIB)
    if not memory.populate(10, 800 * KIB):
        pytest.skip("this kernel cannot")
    assert int(_told_of(memory, "Rss:")[0]) >= 800


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages in this kernel")
def test_memory_asks_for_huge_pages_and_is_pinned_where_that_is_allowed() -> None:
    """The kernel's own word: `hg`, advised to huge pages; `lo`, locked."""
    memory = private_memory(1024 * KIB)
    assert "hg" in _told_of(memory, "VmFlags:")
    assert "lo" not in _told_of(memory, "VmFlags:")
    if not memory.pin():
        pytest.skip("this process may lock no memory")
    assert "lo" in _told_of(memory, "VmFlags:")


def _told_of(memory: MappedMemory, field: str) -> list[str]:
    """What the kernel says of it; it may have made one mapping of several neighbours."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if _holds(line, memory.address(0, 0)))
    return next(line for line in lines[at:] if line.startswith(field)).split()[1:]


def _holds(line: str, address: int) -> bool:
    first, _, rest = line.split(" ", maxsplit=1)[0].partition("-")
    try:
        return int(first, 16) <= address < int(rest, 16)
    except ValueError:
        return False
