"""A chain that is put does not push out its own beginning, whatever the policy and whichever way it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import TypeAlias

import pytest

from unit.kvstore.making import NAMESPACE, address, check_integrity, make_store, make_tier, name, record, whole
from unit.kvstore.test_put import put
from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import VirtualClock, assert_no_leases, settle
from weir_kvstore.arena_put import ArenaPuts, Header
from weir_kvstore.block import Block
from weir_kvstore.checksum import checksum
from weir_kvstore.growing import IDLE_SECONDS
from weir_kvstore.index import Index
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.policies.make import POLICIES, PolicyName
from weir_kvstore.put import Puts
from weir_kvstore.reads import read_lease
from weir_kvstore.record import Address
from weir_kvstore.staging import PutBegin
from weir_kvstore.store import BlockStore
from weir_kvstore.tiers.arena import ArenaSlots

Send: TypeAlias = Callable[[BlockStore, Sequence[int]], Awaitable[None]]
PAYLOAD = bytes(10)
CHAIN = list(range(1, 65))
OTHERS = list(range(1001, 1101))  # as many as there is room for
policies = pytest.mark.parametrize("policy", POLICIES)


async def full_store(
    policy: PolicyName, slower: Sequence[LocalTier] = (), clock: VirtualClock | None = None
) -> BlockStore:
    """Of blocks that were used twice."""
    ledger = slower[0].ledger if slower else None
    store = await make_store(
        clock or VirtualClock(), capacity_bytes=1000, max_blocks=1000, ledger=ledger, slower=slower
    )
    store.ram.apply(replace(store.ram.rules, policy=policy, new_policy=POLICIES[policy]))
    for number in OTHERS:
        await put(store, whole(number, PAYLOAD))
    await use_twice(store.ram)
    return store


async def full_disk(policy: PolicyName, clock: VirtualClock) -> LocalTier:
    disk = make_tier(
        "disk", LeaseLedger(clock), capacity_bytes=1000, max_blocks=1000, policy=policy, new_policy=POLICIES[policy]
    )
    await disk.open()
    for number in OTHERS:
        await disk.put(record(number), PAYLOAD)
    await use_twice(disk)
    return disk


async def use_twice(tier: LocalTier) -> None:
    for number in [*OTHERS, *OTHERS]:
        assert await tier.match(NAMESPACE, [name(number)]) == 1


async def matched(tier: LocalTier) -> int:
    return await tier.match(NAMESPACE, [name(number) for number in CHAIN])


async def by_value(store: BlockStore, numbers: Sequence[int]) -> None:
    await put(store, *(whole(number, PAYLOAD, parent=number - 1 or None) for number in numbers))


async def by_reference(store: BlockStore, numbers: Sequence[int]) -> None:
    ids = count(1)
    puts = ArenaPuts(store, Puts(store, max_open=1, idle_seconds=10), new_id=lambda: f"r{next(ids)}")
    parents = [b"", *map(name, CHAIN)]
    headers = [Header(name(number), parents[number - 1], 10, checksum(PAYLOAD)) for number in numbers]
    reserved = puts.reserve(PutBegin(NAMESPACE), headers, owner="me")
    slots = store.ram.slots
    assert isinstance(slots, ArenaSlots)
    for place in reserved.places:
        assert isinstance(place, int)
        slots._memory.view[place : place + 10] = PAYLOAD
    await puts.commit(reserved.reservation_id)


@policies
@pytest.mark.parametrize("send", [by_value, by_reference])
@pytest.mark.parametrize("at_once", [1, 16])
async def test_a_chain_that_comes_in_batches_is_there_in_the_end(policy: PolicyName, send: Send, at_once: int) -> None:
    store = await full_store(policy)
    for start in range(0, 64, at_once):
        await send(store, CHAIN[start : start + at_once])
        check_integrity(store)
    assert await matched(store.ram) == 64
    assert_no_leases(store.ledger)


@policies
async def test_two_chains_that_come_by_turns(policy: PolicyName) -> None:
    """Forty blocks each: together they fit. Either has begun to grow when the other comes."""
    store = await full_store(policy)
    for start in range(0, 40, 8):
        for begin, at in ((0, start), (0, start + 4), (500, start), (500, start + 4)):
            numbers = range(begin + at + 1, begin + at + 5)
            await put(store, *(whole(n, PAYLOAD, parent=n - 1 if n > begin + 1 else None) for n in numbers))
    for begin in (0, 500):
        assert await store.ram.match(NAMESPACE, [name(begin + number) for number in range(1, 41)]) == 40


@policies
async def test_a_chain_that_is_copied_down_is_there_in_the_end(policy: PolicyName) -> None:
    clock = VirtualClock()
    disk = await full_disk(policy, clock)
    store = await make_store(clock, capacity_bytes=10_000, max_blocks=1000, ledger=disk.ledger, slower=[disk])
    moving = asyncio.ensure_future(store.mover.run())
    for start in range(0, 64, 16):
        await by_value(store, CHAIN[start : start + 16])
        while len(store.mover):
            await settle()
    assert await matched(disk) == 64
    moving.cancel()
    await asyncio.wait([moving])
    check_integrity(store)


@policies
async def test_a_chain_that_is_brought_up_is_there_in_the_end(policy: PolicyName) -> None:
    clock = VirtualClock()
    disk = make_tier("disk", LeaseLedger(clock), capacity_bytes=10_000, max_blocks=1000)
    await disk.open()
    for number in CHAIN:
        await disk.put(record(number, parent=number - 1 or None), PAYLOAD)
    store = await full_store(policy, [disk], clock)
    await store.mover.drain()  # what waits to be copied could not go
    match = await store.match(NAMESPACE, [name(n) for n in CHAIN], skip_blocks=0, seconds=5, owner="me")
    assert match.lease_id is not None
    assert len([piece async for piece in read_lease(store, match.lease_id, owner="me")]) == 64
    store.leases.release(match.lease_id)
    assert await matched(store.ram) == 64


async def test_a_chain_that_is_longer_than_the_tier_keeps_its_beginning() -> None:
    disk = await full_disk("lfu", VirtualClock())
    for number in range(1, 151):
        assert await disk.put(record(number, parent=number - 1 or None), PAYLOAD) == (number <= 100)
    assert await matched(disk) == 64


async def test_a_chain_that_comes_block_by_block_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    walked, line = 0, Index.line

    def counted(self: Index, at: Address, seen: set[int]) -> list[Block]:
        nonlocal walked
        found = line(self, at, seen)
        walked += len(found)
        return found

    monkeypatch.setattr(Index, "line", counted)
    disk = make_tier("disk", LeaseLedger(VirtualClock()), capacity_bytes=50_000, max_blocks=5000)
    await disk.open()
    for number in range(1, 5001):
        await disk.put(record(number + 10_000), PAYLOAD)
    for number in range(1, 4001):
        await disk.put(record(number, parent=number - 1 or None), PAYLOAD)
    assert disk.index.find(address(1)) is not None
    assert walked < 4000 * 40  # those who tell the policy of a chain's growth walk too


async def test_what_is_held_is_given_back_when_nothing_comes() -> None:
    clock = VirtualClock()
    store = await full_store("lfu", clock=clock)
    await by_value(store, CHAIN[:16])
    await by_value(store, CHAIN[16:32])
    assert store.ram.index.evictable_bytes() == {"": 680}
    store.sweep()
    assert store.ram.index.evictable_bytes() == {"": 680}
    await clock.advance(IDLE_SECONDS)
    store.sweep()
    assert store.ram.index.evictable_bytes() == {"": 1000}
    check_integrity(store)


async def test_what_is_held_gives_way_where_nobody_else_can() -> None:
    store = await full_store("lfu")
    for start in range(0, 64, 16):
        await by_value(store, CHAIN[start : start + 16])
    for number in range(501, 561):
        await put(store, whole(number, PAYLOAD, parent=number - 1 if number > 501 else None))
    assert await store.ram.match(NAMESPACE, [name(number) for number in range(501, 561)]) == 60
    assert store.ram.counters.refused == 0
    check_integrity(store)


async def test_what_is_removed_while_it_is_held_is_freed_at_once() -> None:
    store = await full_store("lfu")
    for start in range(0, 64, 16):
        await by_value(store, CHAIN[start : start + 16])
    assert await store.remove(NAMESPACE, None) == 100
    assert (len(store.ram.index), store.ram.slots.used_bytes) == (0, 0)
    check_integrity(store)


async def test_a_put_that_does_not_end_well_holds_nobody() -> None:
    clock = VirtualClock()
    store = await full_store("lfu", clock=clock)
    await by_value(store, CHAIN[:16])
    await put(store, replace(whole(17, PAYLOAD, parent=16), checksum=1))
    await clock.advance(IDLE_SECONDS)
    store.sweep()
    assert sum(store.ram.index.evictable_bytes().values()) == store.ram.slots.used_bytes
    assert len(store.ram._growing) == 0
    check_integrity(store)
