"""By reference as by value: what verifies is visible at once, and whatever else happens, everything is given back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

import pytest

from unit.kvstore.making import NAMESPACE, address, check_integrity, make_store, name, whole
from unit.kvstore.test_put import put
from weir_chassis.errors import NotFound, Overloaded
from weir_chassis.testing import VirtualClock, assert_no_leases
from weir_kvstore import arena_put as module
from weir_kvstore.arena_put import ArenaPuts, Header, Reserved
from weir_kvstore.checksum import checksum
from weir_kvstore.put import Puts
from weir_kvstore.staging import NoPlace, PutBegin, PutResult
from weir_kvstore.store import BlockStore
from weir_kvstore.tiers.arena import ArenaSlots

PAYLOADS = {number: bytes([number]) * 10 for number in range(1, 12)}


@dataclass
class Neighbour:
    """Writes where it is told, as an executor does."""

    store: BlockStore
    puts: ArenaPuts
    streams: Puts

    def reserve(self, *numbers: int, begin: PutBegin | None = None) -> Reserved:
        headers = [Header(name(number), b"", 10, checksum(PAYLOADS[number])) for number in numbers]
        return self.puts.reserve(begin or PutBegin(NAMESPACE), headers, owner="me")

    def write(self, reserved: Reserved, *numbers: int) -> None:
        slots = self.store.ram.slots
        assert isinstance(slots, ArenaSlots)
        for place, number in zip(reserved.places, numbers, strict=True):
            if isinstance(place, int):
                slots._memory.view[place : place + 10] = PAYLOADS[number]

    async def put(self, *numbers: int) -> PutResult:
        reserved = self.reserve(*numbers)
        self.write(reserved, *numbers)
        return await self.puts.commit(reserved.reservation_id)

    def held(self) -> Sequence[int]:
        return [number for number in PAYLOADS if self.store.ram.index.find(address(number)) is not None]


async def make(clock: VirtualClock | None = None, **limits: Any) -> Neighbour:
    store = await make_store(clock or VirtualClock(), **limits)
    ids = count(1)
    streams = Puts(store, max_open=2, idle_seconds=10)
    return Neighbour(store, ArenaPuts(store, streams, new_id=lambda: f"r{next(ids)}"), streams)


def nothing_is_held(n: Neighbour) -> None:
    check_integrity(n.store)
    assert_no_leases(n.store.ledger)
    assert n.puts._reservations == {}
    assert n.store.ram.slots.used_bytes == 10 * len(n.held())


async def test_what_is_written_is_visible_after_commit_and_not_before() -> None:
    n = await make()
    reserved = n.reserve(1, 2)
    n.write(reserved, 1, 2)
    assert (n.held(), len(n.streams), n.store.ram.slots.used_bytes) == ([], 1, 20)
    assert await n.puts.commit(reserved.reservation_id) == PutResult(stored=2)
    assert n.held() == [1, 2]
    nothing_is_held(n)


async def test_what_does_not_verify_is_refused_by_itself() -> None:
    n = await make()
    reserved = n.reserve(1, 2, 3)
    n.write(reserved, 1, 3, 3)
    assert await n.puts.commit(reserved.reservation_id) == PutResult(stored=2, corrupt=1)
    assert (n.held(), n.store.ram.counters.corrupt) == ([1, 3], 1)
    nothing_is_held(n)


async def test_what_is_held_or_too_much_gets_no_place() -> None:
    n = await make(max_staged_bytes=20)
    await put(n.store, whole(1, PAYLOADS[1]))
    reserved = n.reserve(1, 2, 3, 4)
    assert reserved.places[0] is NoPlace.PRESENT
    assert reserved.places[3] is NoPlace.REFUSED
    n.write(reserved, 1, 2, 3, 4)
    assert await n.puts.commit(reserved.reservation_id) == PutResult(stored=2, present=1, refused=1)
    again = n.reserve(1, 2, 3)
    assert (again.reservation_id, list(again.places)) == ("", [NoPlace.PRESENT] * 3)
    nothing_is_held(n)


async def test_what_was_held_and_is_gone_counts_as_neither() -> None:
    n = await make()
    await put(n.store, whole(1, PAYLOADS[1]))
    reserved = n.reserve(1, 2)
    n.write(reserved, 1, 2)
    await n.store.remove(NAMESPACE, [name(1)])
    assert await n.puts.commit(reserved.reservation_id) == PutResult(stored=1, refused=1)


async def test_two_who_put_the_same_block() -> None:
    n = await make()
    first, second = n.reserve(1), n.reserve(1)
    for reserved in (first, second):
        n.write(reserved, 1)
    assert await n.puts.commit(first.reservation_id) == PutResult(stored=1)
    assert await n.puts.commit(second.reservation_id) == PutResult(present=1)
    nothing_is_held(n)


async def test_prefixes_that_are_too_short_are_not_stored_this_way_either() -> None:
    n = await make(min_prefix_tokens=32)
    reserved = n.reserve(1, begin=PutBegin(NAMESPACE, block_size=16))
    n.write(reserved, 1)
    assert await n.puts.commit(reserved.reservation_id) == PutResult(refused=1)
    assert n.store.ram.counters.not_admitted == 1
    nothing_is_held(n)


async def test_blocks_say_whose_they_are_and_what_they_took() -> None:
    n = await make()
    reserved = n.reserve(1, begin=PutBegin(NAMESPACE, tenant="acme", prefill_seconds=0.5))
    n.write(reserved, 1)
    await n.puts.commit(reserved.reservation_id)
    block = n.store.ram.index.find(address(1))
    assert block is not None
    assert (block.record.tenant, block.record.prefill_seconds) == ("acme", 0.5)


async def test_a_cancelled_or_lapsed_reservation_leaves_nothing() -> None:
    clock = VirtualClock()
    n = await make(clock)
    cancelled, lapsed = n.reserve(1), n.reserve(2)
    n.puts.cancel(cancelled.reservation_id)
    n.puts.cancel(cancelled.reservation_id)
    n.puts.cancel("unknown")
    await clock.advance(10)
    n.store.ledger.expire()
    for reserved in (cancelled, lapsed):
        with pytest.raises(NotFound, match="reservation"):
            await n.puts.commit(reserved.reservation_id)
    nothing_is_held(n)


async def test_a_reservation_is_committed_once() -> None:
    n = await make()
    reserved = n.reserve(1)
    n.write(reserved, 1)
    results = await asyncio.gather(*(n.puts.commit(reserved.reservation_id) for _ in range(2)), return_exceptions=True)
    assert results[0] == PutResult(stored=1)
    assert isinstance(results[1], NotFound)
    nothing_is_held(n)


async def test_reservations_and_streams_are_bounded_together() -> None:
    n = await make()
    reserved = n.reserve(1)
    async with n.streams.open("stream"):
        with pytest.raises(Overloaded, match="2 puts are open"):
            n.reserve(2)
        n.puts.cancel(reserved.reservation_id)
        n.puts.cancel(n.reserve(2).reservation_id)
    nothing_is_held(n)


@pytest.mark.parametrize("end", ["lapses", "cancelled", "caller_leaves"])
async def test_one_that_ends_while_it_is_verified_stores_nothing(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    n = await make(clock)
    started, go_on = threading.Event(), threading.Event()
    verify = module._verify

    def slowly(payloads: Sequence[tuple[memoryview, int]]) -> list[bool]:
        started.set()
        assert go_on.wait(10)
        return verify(payloads)

    monkeypatch.setattr(module, "_verify", slowly)
    reserved = n.reserve(1, 2)
    n.write(reserved, 1, 2)
    committing = asyncio.create_task(n.puts.commit(reserved.reservation_id))
    await asyncio.to_thread(started.wait, 10)
    match end:
        case "lapses":
            await clock.advance(11)
            n.store.ledger.expire()
        case "cancelled":
            n.store.ledger.release_owner("me")
        case "caller_leaves":
            committing.cancel()
    await asyncio.sleep(0)
    go_on.set()
    (result,) = await asyncio.gather(committing, return_exceptions=True)
    assert isinstance(result, asyncio.CancelledError if end == "caller_leaves" else NotFound)
    assert n.held() == []
    nothing_is_held(n)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_neighbours_do_the_books_agree(seed: int) -> None:
    random, clock = Random(seed), VirtualClock()
    n = await make(clock, capacity_bytes=80)
    open_: list[tuple[Reserved, list[int]]] = []
    for _ in range(120):
        kind = random.random()
        if kind < 0.5:
            numbers = random.sample(sorted(PAYLOADS), random.randrange(1, 5))
            try:
                open_.append((n.reserve(*numbers), numbers))
            except Overloaded:
                assert len(n.streams) == 2
        elif kind < 0.8 and open_:
            reserved, numbers = open_.pop(random.randrange(len(open_)))
            if random.random() < 0.8:
                n.write(reserved, *numbers)
            await asyncio.gather(n.puts.commit(reserved.reservation_id or "r"), return_exceptions=True)
        elif kind < 0.9 and open_:
            n.puts.cancel(open_.pop()[0].reservation_id)
        else:
            await clock.advance(random.randrange(8))
            n.store.sweep()
        check_integrity(n.store)
        slots = n.store.ram.slots
        assert isinstance(slots, ArenaSlots)
        for number in n.held():
            block = n.store.ram.index.find(address(number))
            assert block is not None
            assert checksum(slots.view(block.block_id)) == block.checksum
    await clock.advance(11)
    n.store.sweep()
    nothing_is_held(n)
