"""Every way of copying blocks writes the same bytes, no others, and finds the same blocks sound."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from xxhash import xxh3_64_intdigest

from unit.executor.copiers import COPIERS, NATIVE, name_of
from weir_chassis.mapped_memory import MappedMemory, private_memory
from weir_executor.kv_transfer import copier as module
from weir_executor.kv_transfer.copier import Blocks, Copier, NativeCopier, PlainCopier, load_copier

MEMORY_BYTES = 512 * 1024
RANDOM_BYTES = Random(7).randbytes(MEMORY_BYTES)
# A stripe of XXH3 is 64 bytes, and after 16 of them its sums are scrambled; up to 240 bytes it is another algorithm.
SIZES = st.one_of(
    st.integers(1, 3000),
    st.builds(lambda units, odd: max(1, units * 64 + odd), st.integers(0, 80), st.integers(-2, 2)),
    st.builds(lambda units, odd: units * 1024 + odd, st.integers(1, 100), st.integers(-65, 65)),
)
every_way = pytest.mark.parametrize("copier", COPIERS, ids=name_of)


def memory(content: bytes = b"") -> MappedMemory:
    made = private_memory(MEMORY_BYTES)
    made.copy_in(0, content)
    return made


def test_what_is_compiled_runs_here() -> None:
    assert "plain" in [copier.name for copier in NATIVE]


@every_way
@given(data=st.data())
def test_blocks_are_copied_whole_and_verified(copier: Copier, data: st.DataObject) -> None:
    """XXH3's reference implementation is the oracle, and Python's slices."""
    size, count = data.draw(SIZES), data.draw(st.integers(0, 3))
    stride = size + data.draw(st.sampled_from([0, -size % 64, 1, 8, 16, 100]))
    offsets = data.draw(st.lists(st.integers(0, MEMORY_BYTES - size), min_size=count, max_size=count))
    source, target = memory(RANDOM_BYTES), memory()
    blocks = [RANDOM_BYTES[offset : offset + size] for offset in offsets]
    checksums = [xxh3_64_intdigest(block) for block in blocks]
    sound = data.draw(st.integers(0, count))
    if sound < count:
        checksums[sound] ^= 1 << data.draw(st.integers(0, 63))
    assert copier.copy_out(source, Blocks(offsets, checksums, size), target, stride) == sound
    expected = b"".join(block.ljust(stride, b"\0") for block in blocks[:sound])
    written = target.view()
    assert written[: len(expected)] == expected
    end = len(expected) + (size if sound < count else 0)
    assert not any(written[end:])


@every_way
@given(size=SIZES, offset=st.integers(0, 200))
def test_payloads_are_copied_in(copier: Copier, size: int, offset: int) -> None:
    target, payload = memory(), RANDOM_BYTES[:size]
    copier.copy_in(target, offset, payload)
    assert bytes(target.view()) == bytes(offset) + payload + bytes(MEMORY_BYTES - offset - size)


@every_way
def test_a_block_longer_than_a_strip_is_one(copier: Copier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STRIP_BYTES", 1000)
    source, target = memory(RANDOM_BYTES), memory()
    for size in (999, 1000, 1001, 2000, 2560):
        blocks = Blocks([70], [xxh3_64_intdigest(RANDOM_BYTES[70 : 70 + size])], size)
        assert copier.copy_out(source, blocks, target, size) == 1
        assert target.view()[:size] == RANDOM_BYTES[70 : 70 + size]


@contextmanager
def others_write(memory: MappedMemory, contents: Sequence[bytes]) -> Iterator[None]:
    """One after the other at the memory's begin, as fast as can be, as another process may."""
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            for content in contents:
                memory.copy_in(0, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()


@every_way
@pytest.mark.parametrize("size", [4096, 4096 + 13])
def test_what_verifies_is_what_was_copied_while_others_write(copier: Copier, size: int) -> None:
    source, target = memory(), memory()
    one, other = b"1" * size, b"2" * size
    with others_write(source, [one, other]):
        for _ in range(1000):
            if copier.copy_out(source, Blocks([0], [xxh3_64_intdigest(one)], size), target, size):
                assert target.view()[:size] == one


@pytest.mark.parametrize("copier", NATIVE, ids=name_of)
def test_the_checksum_is_of_what_was_written_while_others_write(copier: NativeCopier) -> None:
    """One that is taken of a second look at the source differs from the copy's some hundred times here."""
    source, target, size = memory(), memory(), 128 * 1024 + 13
    from_, to = ctypes.c_char_p(source.address(0, size)), target.address(0, size)
    with others_write(source, [RANDOM_BYTES[:size], RANDOM_BYTES[size : 2 * size]]):
        for _ in range(5000):
            checksum = copier._library.weir_copy_in(copier._copies, to, from_, size)
            assert checksum == xxh3_64_intdigest(target.view()[:size])


@every_way
def test_a_place_past_an_end_is_our_mistake(copier: Copier) -> None:
    source, target = memory(), memory()
    for offsets, stride in (([0, MEMORY_BYTES - 299], 300), ([-1], 300), ([0, 0], MEMORY_BYTES - 299)):
        with pytest.raises(AssertionError):
            blocks = Blocks(offsets, [xxh3_64_intdigest(bytes(300))] * len(offsets), 300)
            copier.copy_out(source, blocks, target, stride)
    with pytest.raises(AssertionError):
        copier.copy_in(target, MEMORY_BYTES - 299, bytes(300))


def test_the_best_way_is_taken_and_named() -> None:
    with capture_logs() as logs:
        copier = load_copier()
    assert isinstance(copier, NativeCopier)
    assert copier.name == NATIVE[-1].name
    assert [(line["event"], line["instructions"]) for line in logs] == [("blocks_are_copied_natively", copier.name)]


def test_without_a_compiler_it_is_pythons_and_a_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("WEIR_NATIVE_CACHE", str(tmp_path))
    with capture_logs() as logs:
        assert isinstance(load_copier(), PlainCopier)
    assert [line["event"] for line in logs] == ["blocks_are_copied_plainly"]
    assert "/nowhere/c++" in logs[0]["reason"]
