"""What every tier keeps, whatever is behind it. Each check opens places of its own and knows nothing else.

A tier joins by a `Make` in test_tier_contract.py: how it is made, how its stored bytes are spoilt, how it is made to
fail, and how time passes for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from weir_kvstore.checksum import checksum
from weir_kvstore.record import Address, Bytes, Record
from weir_kvstore.tier import Tier

NAMESPACE: Final = b"n" * 16
OTHER_NAMESPACE: Final = b"o" * 16
# Room for what most checks put. A tier whose place rounds up may have more, none has less.
CAPACITY_BYTES: Final = 4 * 1024 * 1024
# The longest that a tier rests after a failure before it tries again by itself, in the steps in which checks wait.
_RECOVERS_WITHIN: Final = 40
_STEP_SECONDS: Final = 0.25


@dataclass
class Place:
    """One empty, opened tier, and what a test can do to it from outside."""

    tier: Tier
    # Flips one bit of the payload that is stored at this address.
    corrupt: Callable[[Address], Awaitable[None]]
    # Whatever the tier asks of its place fails from now on (an I/O error, a lost server), or works again.
    fail: Callable[[bool], Awaitable[None]]
    # Lets time pass: by a virtual clock, or really.
    wait: Callable[[float], Awaitable[None]]


class Make(Protocol):
    def __call__(
        self, *, capacity_bytes: int = CAPACITY_BYTES, ttl_seconds: float | None = None
    ) -> AbstractAsyncContextManager[Place]: ...


Check = Callable[[Make], Awaitable[None]]


def name(number: int) -> bytes:
    """A block hash."""
    return number.to_bytes(16, "big")


def names(*numbers: int) -> list[bytes]:
    return [name(number) for number in numbers]


def block(
    number: int, payload: Bytes | None = None, *, namespace: bytes = NAMESPACE, tenant: str = "acme"
) -> tuple[Record, Bytes]:
    """A record and its payload: the block of this number in a chain of them."""
    payload = payload_of(number) if payload is None else payload
    parent = name(number - 1) if number > 1 else b""
    address = Address(namespace, name(number))
    return Record(address, parent, len(payload), checksum(payload), tenant, number / 8), payload


def payload_of(number: int, size_bytes: int = 1000) -> bytes:
    return Random(number).randbytes(size_bytes)


async def put_all(tier: Tier, *numbers: int) -> None:
    for number in numbers:
        assert await tier.put(*block(number))


async def held(tier: Tier, *numbers: int) -> list[int]:
    """Those of these blocks that can be had, each of them right."""
    return [number for number in numbers if await has(tier, *block(number))]


async def has(tier: Tier, record: Record, payload: Bytes) -> bool:
    """Whether the tier gives this block; never another one in its stead."""
    got = await tier.get(record.address)
    if got is None:
        return False
    assert got[0] == record
    assert bytes(got[1]) == bytes(payload)
    return True


# --- what is put can be had ------------------------------------------------------------------------------------------


async def check_what_is_put_comes_back_with_its_record(make: Make) -> None:
    async with make() as place:
        record, payload = block(7)
        assert await place.tier.put(record, payload)
        got = await place.tier.get(record.address)
        assert got is not None
        assert got[0] == record
        assert bytes(got[1]) == payload


async def check_nothing_is_held_at_first(make: Make) -> None:
    async with make() as place:
        assert await place.tier.match(NAMESPACE, names(1, 2)) == 0
        assert await place.tier.match(NAMESPACE, []) == 0
        assert await place.tier.get(block(1)[0].address) is None
        assert await place.tier.remove([block(1)[0].address]) == 0
        assert await place.tier.remove_namespace(NAMESPACE) == 0
        report = place.tier.report()
        assert (report.tier, report.fault) == (place.tier.name, "")


async def check_match_counts_leading_blocks(make: Make) -> None:
    async with make() as place:
        await put_all(place.tier, 1, 2, 3, 5)
        assert await place.tier.match(NAMESPACE, names(1, 2, 3, 4, 5)) == 3
        assert await place.tier.match(NAMESPACE, names(1, 2)) == 2
        assert await place.tier.match(NAMESPACE, names(4, 5)) == 0
        assert await place.tier.match(NAMESPACE, names(5)) == 1


async def check_a_long_chain(make: Make) -> None:
    async with make() as place:
        chain = range(1, 301)
        for number in chain:
            assert await place.tier.put(*block(number, payload_of(number, 100)))
        assert await place.tier.match(NAMESPACE, names(*chain, 999)) == 300
        await place.tier.remove([Address(NAMESPACE, name(200))])
        assert await place.tier.match(NAMESPACE, names(*chain)) == 199


async def check_namespaces_are_apart(make: Make) -> None:
    async with make() as place:
        mine, theirs = block(1), block(1, b"theirs", namespace=OTHER_NAMESPACE)
        assert await place.tier.put(*mine)
        assert await place.tier.match(OTHER_NAMESPACE, names(1)) == 0
        assert await place.tier.get(theirs[0].address) is None
        assert await place.tier.put(*theirs)
        assert await has(place.tier, *mine)
        assert await has(place.tier, *theirs)


async def check_who_is_held_is_kept(make: Make) -> None:
    async with make() as place:
        await put_all(place.tier, 1)
        assert await place.tier.put(*block(1, b"another"))
        assert await held(place.tier, 1) == [1]


async def check_payloads_of_any_size_and_kind(make: Make) -> None:
    async with make() as place:
        for number, size_bytes in enumerate((1, 15, 4096, 4097, 65_537, 1024 * 1024), start=1):
            payload = payload_of(number, size_bytes)
            kind: Bytes = (payload, bytearray(payload), memoryview(b"x" + payload)[1:])[number % 3]
            record, _ = block(number, payload)
            assert await place.tier.put(record, kind)
            if isinstance(kind, bytearray):
                kind[:] = bytes(size_bytes)  # the caller's own again once `put` has ended
            assert await has(place.tier, record, payload)


async def check_what_was_given_stays(make: Make) -> None:
    async with make() as place:
        await put_all(place.tier, 1)
        got = await place.tier.get(block(1)[0].address)
        assert got is not None
        await place.tier.remove([block(1)[0].address])
        await put_all(place.tier, *range(2, 20))
        assert bytes(got[1]) == payload_of(1)


# --- it may never be wrong -------------------------------------------------------------------------------------------


async def check_spoilt_bytes_are_a_miss(make: Make) -> None:
    async with make() as place:
        await put_all(place.tier, 1, 2, 3)
        await place.corrupt(block(2)[0].address)
        assert await held(place.tier, 1, 2, 3) == [1, 3]
        assert place.tier.report().counters.corrupt == 1
        assert await place.tier.match(NAMESPACE, names(1, 2, 3)) == 1
        assert await held(place.tier, 2) == []
        assert place.tier.report().counters.corrupt == 1, "it is counted once"
        await put_all(place.tier, 2)
        assert await held(place.tier, 1, 2, 3) == [1, 2, 3]


async def check_many_at_once(make: Make) -> None:
    async with make() as place:
        dice = Random(1)

        async def one() -> None:
            number = dice.randint(1, 12)
            match dice.randint(0, 3):
                case 0 | 1:
                    await has(place.tier, *block(number))
                case 2:
                    await place.tier.put(*block(number))
                case 3:
                    await place.tier.remove([block(number)[0].address])

        for _ in range(10):
            await asyncio.gather(*(one() for _ in range(30)))
        await put_all(place.tier, *range(1, 13))
        assert await held(place.tier, *range(1, 13)) == list(range(1, 13))


async def check_a_put_that_is_cancelled(make: Make) -> None:
    """Wherever it is cut off, the block is there whole or not at all."""
    async with make() as place:
        for turns in range(8):
            record, payload = block(turns + 1, payload_of(turns, 100_000))
            putting = asyncio.ensure_future(place.tier.put(record, payload))
            for _ in range(turns):
                await asyncio.sleep(0)
            putting.cancel()
            await asyncio.wait([putting])
            await has(place.tier, record, payload)
            assert await place.tier.put(record, payload)
            assert await has(place.tier, record, payload)


# --- removing --------------------------------------------------------------------------------------------------------


async def check_removed_blocks_are_gone(make: Make) -> None:
    async with make() as place:
        await put_all(place.tier, 1, 2, 3)
        addresses = [block(number)[0].address for number in (2, 2, 9)]
        assert await place.tier.remove(addresses) == 1
        assert await held(place.tier, 1, 2, 3) == [1, 3]
        assert await place.tier.match(NAMESPACE, names(1, 2, 3)) == 1
        assert await place.tier.remove(addresses) == 0
        await put_all(place.tier, 2)
        assert await held(place.tier, 1, 2, 3) == [1, 2, 3]


async def check_a_namespace_is_removed_and_no_other(make: Make) -> None:
    async with make() as place:
        await put_all(place.tier, 1, 2, 3)
        theirs = block(1, namespace=OTHER_NAMESPACE)
        assert await place.tier.put(*theirs)
        assert await place.tier.remove_namespace(NAMESPACE) == 3
        assert await held(place.tier, 1, 2, 3) == []
        assert await has(place.tier, *theirs)


# --- bounds ----------------------------------------------------------------------------------------------------------


async def check_bytes_are_bounded(make: Make) -> None:
    """Three times what fits: it never takes more than it may, and what it still gives is right."""
    async with make(capacity_bytes=1024 * 1024) as place:
        numbers = range(1, 61)
        blocks = {number: block(number, payload_of(number, 50_000)) for number in numbers}
        for number in numbers:
            await place.tier.put(*blocks[number])
            report = place.tier.report()
            assert report.bytes <= report.capacity_bytes
        there = [number for number in numbers if await has(place.tier, *blocks[number])]
        assert 0 < len(there) < 60
        counters = place.tier.report().counters
        assert counters.evicted + counters.refused > 0 or not place.tier.report().policy  # somebody else evicts


async def check_a_block_that_can_never_fit(make: Make) -> None:
    async with make(capacity_bytes=1024 * 1024) as place:
        await put_all(place.tier, 1)
        too_big = block(2, bytes(place.tier.report().capacity_bytes + 1))
        assert not await place.tier.put(*too_big)
        assert place.tier.report().counters.refused == 1
        assert await held(place.tier, 1) == [1]


async def check_blocks_expire(make: Make) -> None:
    async with make(ttl_seconds=1) as place:
        await put_all(place.tier, 1, 2)
        assert await held(place.tier, 1, 2) == [1, 2]
        await place.wait(1.1)
        assert await place.tier.match(NAMESPACE, names(1, 2)) == 0
        assert await held(place.tier, 1, 2) == []
        await put_all(place.tier, 1)
        assert await held(place.tier, 1, 2) == [1]


# --- failing ---------------------------------------------------------------------------------------------------------


async def check_a_place_that_fails_is_a_miss(make: Make) -> None:
    """Nothing is raised, the report says why, and it comes back by itself with what was committed."""
    async with make() as place:
        await put_all(place.tier, 1, 2)
        await place.fail(True)
        for _ in range(4):
            assert await held(place.tier, 1, 2) == []
            assert not await place.tier.put(*block(3))
        assert await place.tier.match(NAMESPACE, names(1, 2)) == 0
        assert await place.tier.remove([block(9)[0].address]) == 0
        assert place.tier.report().fault
        await place.fail(False)
        assert await _recovers(place)
        await put_all(place.tier, 3)
        assert await held(place.tier, 1, 2, 3) == [1, 2, 3]
        assert not place.tier.report().fault


async def _recovers(place: Place) -> bool:
    """Whoever only asks, finds it working after a while."""
    for _ in range(_RECOVERS_WITHIN):
        got, stored = await held(place.tier, 1, 2), await place.tier.put(*block(3))
        if got == [1, 2] and stored:
            return True
        await place.wait(_STEP_SECONDS)
    return False


async def check_a_tier_counts(make: Make) -> None:
    async with make() as place:
        await put_all(place.tier, 1, 2)
        await place.tier.match(NAMESPACE, names(1, 2, 3))
        await held(place.tier, 1)
        counters = place.tier.report().counters
        assert counters is place.tier.counters
        assert (counters.stored, counters.hits, counters.misses) == (2, 2, 1)
        assert (counters.written_bytes, counters.read_bytes) == (2000, 1000)


CHECKS: Final[list[Check]] = [check for key, check in sorted(globals().items()) if key.startswith("check_")]
