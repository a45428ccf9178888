from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from xxhash import xxh3_64_intdigest

from weir_kvstore import checksum as module
from weir_kvstore.checksum import RunningChecksum, checksum, matches


def test_it_is_xxh3_64() -> None:
    """The published value for no input, and one that the xxhsum tool gives: other languages must agree."""
    assert checksum(b"") == 0x2D06800538D394C2
    assert checksum(b"abc") == 0x78AF5F94892F3950


@pytest.mark.parametrize("piece_bytes", [1, 7, 1000, 5000])
def test_pieces_add_up(piece_bytes: int) -> None:
    payload = bytes(range(256)) * 20
    running = RunningChecksum()
    for start in range(0, len(payload), piece_bytes):
        running.update(payload[start : start + piece_bytes])
    assert running.value == checksum(payload) == checksum(memoryview(bytearray(payload)))


@pytest.mark.parametrize(("size_bytes", "elsewhere"), [(1000, False), (1024 * 1024, False), (1024 * 1024 + 1, True)])
async def test_a_big_payload_is_hashed_off_the_loop(
    size_bytes: int, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def hash_and_note(payload: bytes, hasher: Callable[[bytes], int] = xxh3_64_intdigest) -> int:
        threads.append(threading.get_ident())
        return hasher(payload)

    payload = bytes(size_bytes)
    expected = checksum(payload)
    monkeypatch.setattr(module, "xxh3_64_intdigest", hash_and_note)
    assert await matches(payload, expected)
    assert not await matches(payload, expected ^ 1)
    assert [thread != threading.get_ident() for thread in threads] == [elsewhere, elsewhere]


async def test_the_loop_runs_while_a_thread_hashes() -> None:
    payload, turns = bytes(64 * 1024 * 1024), 0
    hashing = asyncio.ensure_future(matches(payload, 0))
    while not hashing.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 10
