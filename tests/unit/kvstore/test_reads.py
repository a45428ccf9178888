from __future__ import annotations

import asyncio
import threading

import pytest
from xxhash import xxh3_64_intdigest

from unit.kvstore.making import NAMESPACE, address, check_integrity, corrupt, in_pieces, make_store, name, whole
from unit.kvstore.test_put import put
from weir_chassis.errors import LeaseExpired, NotFound
from weir_chassis.testing import VirtualClock, assert_no_leases, settle
from weir_kvstore import checksum, reads
from weir_kvstore.block import State
from weir_kvstore.reads import read_lease
from weir_kvstore.store import BlockStore

PAYLOADS = {number: bytes([number]) * 10 for number in (1, 2, 3)}


async def filled(store: BlockStore) -> None:
    await put(store, *(whole(number, payload) for number, payload in PAYLOADS.items()))


async def lease(store: BlockStore, *numbers: int, seconds: float = 10) -> str:
    hashes = [name(number) for number in numbers]
    match = await store.match(NAMESPACE, hashes, skip_blocks=0, seconds=seconds, owner="me")
    assert match.lease_id is not None
    return match.lease_id


async def read(store: BlockStore, lease_id: str) -> list[tuple[int, int, bytes]]:
    """Number, offset and bytes of each piece."""
    pieces = read_lease(store, lease_id, owner="me")
    return [(int.from_bytes(p.record.address.block_hash, "big"), p.offset, bytes(p.chunk)) async for p in pieces]


async def test_blocks_in_order_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "MAX_CHUNK_BYTES", 4)
    store = await make_store(VirtualClock())
    await put(store, *in_pieces(2, b"0123456789", 3), whole(1, b"abcd"))
    expected = [(2, 0, b"0123"), (2, 4, b"4567"), (2, 8, b"89"), (1, 0, b"abcd")]
    assert await read(store, await lease(store, 2, 1)) == expected


async def test_a_corrupt_block_is_a_miss_and_never_seen_again() -> None:
    store = await make_store(VirtualClock())
    await filled(store)
    lease_id = await lease(store, 1, 2, 3)
    hits = store.ram.counters.hits
    corrupt(store, 2)
    assert await read(store, lease_id) == [(1, 0, PAYLOADS[1])]
    counters = store.ram.counters
    assert (counters.corrupt, counters.misses, counters.hits) == (1, 1, hits)
    assert store.ram.index.find(address(2)) is None
    assert [block.state for block in store.ram.index.blocks()].count(State.QUARANTINED) == 1
    # Once is enough: a second reader meets the quarantine, not the bytes.
    assert await read(store, lease_id) == [(1, 0, PAYLOADS[1])]
    assert (counters.corrupt, counters.misses) == (1, 2)
    store.leases.release(lease_id)
    assert (len(store.ram.index), store.ram.slots.used_bytes) == (2, 20)
    # The address takes right bytes again.
    assert (await put(store, whole(2, PAYLOADS[2]))).stored == 1
    assert len(await read(store, await lease(store, 1, 2, 3))) == 3
    check_integrity(store)


async def test_a_block_that_goes_bad_while_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "MAX_CHUNK_BYTES", 4)
    store = await make_store(VirtualClock())
    await filled(store)
    slow = read_lease(store, await lease(store, 1), owner="slow")
    assert bytes((await anext(slow)).chunk) == PAYLOADS[1][:4]
    corrupt(store, 1)
    assert await read(store, await lease(store, 1)) == []
    with pytest.raises(StopAsyncIteration):
        await anext(slow)


async def test_a_lease_that_ends_midway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "MAX_CHUNK_BYTES", 4)
    clock = VirtualClock()
    store = await make_store(clock)
    await filled(store)
    lapsing, released = await lease(store, 1, 2, seconds=1), await lease(store, 1, 2)
    pieces = [read_lease(store, lease_id, owner="me") for lease_id in (lapsing, released)]
    for each in pieces:
        await anext(each)
    await clock.advance(1)
    store.leases.release(released)
    await store.remove(NAMESPACE, None)
    with pytest.raises(LeaseExpired):
        await anext(pieces[0])
    with pytest.raises(NotFound):
        await anext(pieces[1])
    assert (len(store.ram.index), store.ram.slots.used_bytes) == (0, 0)  # a reader that stalls keeps nothing
    assert_no_leases(store.ledger)


async def test_a_block_is_not_freed_under_the_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum, "_INLINE_BYTES", 0)
    started, go_on = threading.Event(), threading.Event()

    store = await make_store(VirtualClock())
    await put(store, whole(1, b"only"))
    lease_id = await lease(store, 1)

    def wait_and_hash(payload: bytes) -> int:
        started.set()
        assert go_on.wait(10)
        return int(xxh3_64_intdigest(payload))

    monkeypatch.setattr(checksum, "xxh3_64_intdigest", wait_and_hash)
    reading = asyncio.ensure_future(read(store, lease_id))
    await asyncio.to_thread(started.wait, 10)
    store.leases.release(lease_id)
    await store.remove(NAMESPACE, None)
    assert store.ram.slots.used_bytes == 4
    assert store.ledger.counts() == {"pin": 1}
    go_on.set()
    with pytest.raises(NotFound):
        await reading
    assert store.ram.slots.used_bytes == 0
    assert_no_leases(store.ledger)


async def test_a_cancelled_reader_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum, "_INLINE_BYTES", 0)
    go_on = threading.Event()
    store = await make_store(VirtualClock())
    await put(store, whole(1, b"only"))
    monkeypatch.setattr(checksum, "xxh3_64_intdigest", lambda _: go_on.wait(10))
    reading = asyncio.ensure_future(read(store, await lease(store, 1)))
    await settle()
    assert store.ledger.counts() == {"pin": 1, "read": 1}
    reading.cancel()
    await asyncio.wait([reading])
    go_on.set()
    assert store.ledger.counts() == {"read": 1}
    assert store.ram.counters.corrupt == 0


async def test_unknown_and_lapsed_leases() -> None:
    clock = VirtualClock()
    store = await make_store(clock)
    await filled(store)
    with pytest.raises(NotFound):
        await read(store, "unknown")
    lease_id = await lease(store, 1, seconds=1)
    await clock.advance(1)
    with pytest.raises(LeaseExpired):
        await read(store, lease_id)
