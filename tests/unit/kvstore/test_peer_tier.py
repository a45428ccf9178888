"""A peer that is slow, gone, busy or lying is a miss; no lease is left with it, and no request goes in circles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import pytest

from fakes.faulty_peer import FaultyPeer, make_store, served
from unit.kvstore.redis_store import KIB, NAMESPACE, block, hashes
from weir.kvstore.v1.block_chunk import BlockChunk
from weir_chassis.clock import SystemClock
from weir_chassis.errors import DataCorrupt, Internal, Overloaded
from weir_chassis.testing import assert_no_leases
from weir_kvstore.hop import Arrivals
from weir_kvstore.record import Address
from weir_kvstore.store import BlockStore
from weir_kvstore.tiers.peer.pieces import Pieces
from weir_kvstore.tiers.peer.tier import PeerPlace, PeerTier

MIB = KIB * KIB


@asynccontextmanager
async def peered(seconds: float = 5.0) -> AsyncIterator[tuple[FaultyPeer, PeerTier]]:
    """A store, and a tier over it; every lease is given back at the end."""
    async with served(make_store(capacity_bytes=16 * MIB)) as peer:
        await peer.store.open()
        tier = tier_over(peer, seconds=seconds)
        await tier.open()
        yield peer, tier
        peer.stalled = False
        # Before it is closed, which waits for a moment only: on a busy machine a lease would be left to lapse.
        async with asyncio.timeout(30):
            while peer.store.ledger.counts():
                await asyncio.sleep(0.01)
        await tier.close()
    assert_no_leases(peer.store.ledger)


def tier_over(peer: FaultyPeer, *, seconds: float = 5.0, arrivals: Arrivals | None = None) -> PeerTier:
    place = PeerPlace("peer:0", seconds, seconds)
    return PeerTier(place, peer.connect, arrivals or Arrivals(), clock=SystemClock(), random=Random(0))


async def held(tier: PeerTier, numbers: Sequence[int], size_bytes: int = KIB) -> list[int]:
    got = await asyncio.gather(*(tier.get(block(number)[0].address) for number in numbers))
    for number, found in zip(numbers, got, strict=True):
        assert found is None or bytes(found[1]) == block(number, size_bytes=size_bytes)[1], number
    return [number for number, found in zip(numbers, got, strict=True) if found is not None]


async def put_all(tier: PeerTier, *numbers: int, size_bytes: int = KIB) -> None:
    for number in numbers:
        assert await tier.put(*block(number, number - 1, size_bytes=size_bytes, tenant="acme"))


async def test_what_is_asked_for_together_takes_one_lease() -> None:
    async with peered() as (peer, tier):
        await put_all(tier, 1, 2, 3, 4)
        peer.calls.clear()
        assert await held(tier, [1, 2, 3, 4]) == [1, 2, 3, 4]
        assert [method for method, _ in peer.calls if method != "GetStats"] == ["MatchPrefix", "GetBlocks"]


async def test_holes_cost_the_blocks_in_them_only() -> None:
    async with peered() as (_, tier):
        await put_all(tier, 1, 2, 4, 5, 7)
        assert await held(tier, [1, 2, 3, 4, 5, 6, 7]) == [1, 2, 4, 5, 7]
        assert await held(tier, [9, 3, 6]) == []


async def test_a_block_in_several_pieces() -> None:
    async with peered() as (_, tier):
        await put_all(tier, 1, 2, size_bytes=5 * MIB)
        assert await held(tier, [1, 2], size_bytes=5 * MIB) == [1, 2]


async def test_every_call_says_that_it_comes_from_a_store() -> None:
    async with peered() as (peer, tier):
        await put_all(tier, 1)
        await tier.match(NAMESPACE, hashes(1, 2))
        assert await held(tier, [1]) == [1]
        assert await tier.remove([block(1)[0].address]) == 1
        assert {method for method, _ in peer.calls} == {
            "MatchPrefix", "GetBlocks", "PutBlocks", "RemoveBlocks", "GetStats",
        }  # fmt: skip
        assert all(marked for _, marked in peer.calls)


async def test_what_the_peer_has_is_not_sent_again() -> None:
    async with peered() as (peer, tier):
        await put_all(tier, 1, 1, 1)
        assert [method for method, _ in peer.calls].count("PutBlocks") == 1
        assert tier.counters.stored == 1


async def test_records_travel_with_their_blocks() -> None:
    async with peered() as (_, tier):
        record, payload = block(2, 1, tenant="acme")
        assert await tier.put(record, payload)
        got = await tier.get(record.address)
        assert got is not None
        assert got[0] == record


async def test_what_the_peer_holds_is_reported() -> None:
    async with peered() as (peer, tier):
        await put_all(tier, 1, 2)
        tier._note(await tier._peer.stats())
        report = tier.report()
        ram = peer.store.ram.report()
        assert (report.blocks, report.bytes, report.capacity_bytes) == (2, ram.bytes, 16 * MIB)


async def test_a_block_that_arrives_wrong_is_forgotten_there() -> None:
    async with peered() as (peer, tier):
        await put_all(tier, 1, 2, 3)
        peer.spoilt.add(block(2)[0].address.block_hash)
        assert await held(tier, [1, 2, 3]) == [1, 3]
        assert (tier.counters.corrupt, tier.report().fault) == (1, "")
        assert peer.store.find(block(2)[0].address) is None


async def test_a_stalled_peer_costs_its_time_limit_and_then_nothing() -> None:
    async with peered(seconds=0.1) as (peer, tier):
        await put_all(tier, 1)
        peer.stalled = True
        for _ in range(3):
            assert await held(tier, [1]) == []
        assert tier.report().fault == "no answer within 0.1 s"
        begun = time.monotonic()
        for _ in range(100):
            assert await held(tier, [1]) == []
            assert not await tier.put(*block(2))
            assert await tier.match(NAMESPACE, hashes(1)) == 0
        assert time.monotonic() - begun < 15, "three hundred time limits would be thirty seconds"


async def test_a_busy_peer_is_asked_again() -> None:
    async with peered() as (peer, tier):
        await put_all(tier, 1)
        peer.error = Overloaded("too many leases")
        for _ in range(10):
            assert await held(tier, [1]) == []
        assert tier.report().fault == "too many leases"
        peer.error = None
        assert await held(tier, [1]) == [1]
        peer.error = Internal("broken")
        for _ in range(3):
            assert await held(tier, [1]) == []
        peer.error = None
        assert await held(tier, [1]) == [], "it is left alone for a while"


async def test_a_reader_who_leaves_leaves_no_lease() -> None:
    async with peered(seconds=30.0) as (_, tier):
        await put_all(tier, 1, 2, size_bytes=2 * MIB)
        for turns in range(12):
            reading = asyncio.ensure_future(tier.get(block(1)[0].address))
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
        assert await held(tier, [1, 2], size_bytes=2 * MIB) == [1, 2]  # by then the others are through, too


async def test_a_peer_that_is_not_there() -> None:
    async with served(make_store(capacity_bytes=MIB)) as peer:
        tier = tier_over(peer, seconds=1.0)
    await tier.open()  # the channel is closed by now
    assert await tier.get(block(1)[0].address) is None
    assert not await tier.put(*block(1))
    assert await tier.remove_namespace(NAMESPACE) == 0
    assert tier.report().fault
    await tier.close()


@asynccontextmanager
async def each_others_peers() -> AsyncIterator[tuple[FaultyPeer, FaultyPeer]]:
    """Two stores, each the other's slower tier."""
    peers: list[FaultyPeer] = []
    stores: list[BlockStore] = []
    arrivals = [Arrivals(), Arrivals()]
    for number in (0, 1):
        place = PeerPlace("peer:0", 30.0, 30.0)

        def connect(address: str, other: int = 1 - number) -> object:
            return peers[other].connect(address)

        tier = PeerTier(place, connect, arrivals[number], clock=SystemClock(), random=Random(number))  # type: ignore[arg-type]
        stores.append(make_store(capacity_bytes=16 * MIB, slower=[tier], seed=number))
    async with served(stores[0], arrivals[0]) as one, served(stores[1], arrivals[1]) as two:
        peers += [one, two]
        await one.store.open()
        await two.store.open()
        yield one, two


async def match(store: BlockStore, numbers: Sequence[int], seconds: float = 0.0) -> int:
    found = await store.match(NAMESPACE, hashes(*numbers), skip_blocks=0, seconds=seconds, owner="test")
    return found.matched_blocks


async def test_a_question_goes_one_step_and_no_further() -> None:
    async with each_others_peers() as (one, two):
        assert await match(one.store, [1, 2]) == 0
        assert [method for method, _ in two.calls if method != "GetStats"] == ["MatchPrefix"]
        assert [method for method, _ in one.calls if method != "GetStats"] == []
        await two.store.ram.put(*block(1))
        assert await match(one.store, [1, 2]) == 1
        assert await match(two.store, [1, 2]) == 1
        assert await one.store.remove(NAMESPACE, None) == 1
        assert await match(two.store, [1]) == 0
        assert [method for method, _ in one.calls if method != "GetStats"] == ["MatchPrefix", "MatchPrefix"]


async def test_a_block_that_came_from_a_store_is_put_into_no_other() -> None:
    async with each_others_peers() as (one, two):
        (there,) = (tier for tier in one.store.tiers if isinstance(tier, PeerTier))
        (back,) = (tier for tier in two.store.tiers if isinstance(tier, PeerTier))
        assert await there.put(*block(1))
        assert two.store.find(block(1)[0].address) is not None
        assert not await back.put(*block(1))
        assert back.counters.not_admitted == 1
        assert one.store.find(block(1)[0].address) is None
        assert await back.put(*block(2)), "this one came from nobody"


def test_arrivals_are_a_bounded_memory() -> None:
    arrivals = Arrivals(remembered=2)
    for number in (1, 2, 1, 3):
        arrivals.add(Address(NAMESPACE, number.to_bytes(16, "big")))
    found = [number for number in (1, 2, 3) if Address(NAMESPACE, number.to_bytes(16, "big")) in arrivals]
    assert found == [1, 3]


def chunk(number: int, offset: int, length: int, payload_bytes: int = 10) -> BlockChunk:
    payload = bytes(range(10))
    return BlockChunk(
        number.to_bytes(16, "big"), b"", payload_bytes, offset, payload[offset : offset + length] or b"", 0
    )


def test_pieces_become_blocks() -> None:
    pieces = Pieces([block(number, size_bytes=10)[0] for number in (1, 2, 3)])
    for each in (chunk(1, 0, 10), chunk(2, 0, 4), chunk(2, 4, 6), chunk(3, 0, 9)):
        pieces.add(each)
    assert not pieces.done
    assert [(record.address.block_hash[-1], bytes(got)) for record, got in pieces.blocks()] == [
        (1, bytes(range(10))),
        (2, bytes(range(10))),
    ]
    pieces.add(chunk(3, 9, 1))
    assert pieces.done


@pytest.mark.parametrize(
    "wrong",
    [
        [chunk(2, 0, 10)],
        [chunk(1, 0, 10, payload_bytes=11)],
        [chunk(1, 4, 6)],
        [chunk(1, 0, 4), chunk(1, 3, 7)],
        [chunk(1, 0, 4), chunk(2, 0, 10)],
        [chunk(1, 0, 10), chunk(2, 0, 10), chunk(3, 0, 10)],
    ],
)
def test_pieces_that_are_not_next_are_refused(wrong: list[BlockChunk]) -> None:
    pieces = Pieces([block(number, size_bytes=10)[0] for number in (1, 2)])
    with pytest.raises(DataCorrupt):
        for each in wrong:
            pieces.add(each)
