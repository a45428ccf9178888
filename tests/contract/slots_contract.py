"""What all slots keep: bytes by block id, and nothing decided. Those that outlive their process are found again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from contract.tier_contract import block, payload_of
from weir_kvstore.record import Record
from weir_kvstore.tier import Recovered, Slots

CAPACITY_BYTES: Final = 4 * 1024 * 1024


@dataclass
class Room:
    """Slots that have recovered nothing, and how the next process finds them again."""

    slots: Slots
    # Leaves them as a process does that ends now, and opens what is left; None: they end with their process.
    reopen: Callable[[], Awaitable[Slots]] | None


class Make(Protocol):
    def __call__(self, *, capacity_bytes: int = CAPACITY_BYTES) -> AbstractAsyncContextManager[Room]: ...


Check = Callable[[Make], Awaitable[None]]


async def store(slots: Slots, block_id: int, payload: bytes | None = None) -> Record:
    record, payload = _record(block_id, payload)
    assert slots.claim(block_id, len(payload))
    await slots.write(block_id, 0, payload)
    await slots.commit(block_id, record)
    return record


def _record(number: int, payload: bytes | None = None) -> tuple[Record, bytes]:
    payload = payload_of(number) if payload is None else payload
    return block(number, payload)[0], payload


async def _read(slots: Slots, block_id: int, size_bytes: int = 1000) -> bytes:
    """Both ways of reading, which agree."""
    payload = bytes(await slots.read(block_id, 0, size_bytes))
    into = bytearray(size_bytes)
    await slots.read_into(block_id, 0, memoryview(into))
    assert into == payload
    return payload


async def check_bytes_come_back_in_any_range(make: Make) -> None:
    async with make() as room:
        payload = payload_of(1, 300_000)
        await store(room.slots, 1, payload)
        assert await _read(room.slots, 1, 300_000) == payload
        for offset, size_bytes in ((0, 1), (4095, 2), (4096, 4096), (299_999, 1), (100, 0)):
            assert bytes(await room.slots.read(1, offset, size_bytes)) == payload[offset : offset + size_bytes]


async def check_pieces_make_a_whole(make: Make) -> None:
    async with make() as room:
        record, payload = _record(1, payload_of(1, 100_001))
        assert room.slots.claim(1, len(payload))
        for offset in range(0, len(payload), 7000):
            await room.slots.write(1, offset, memoryview(payload)[offset : offset + 7000])
        await room.slots.commit(1, record)
        assert await _read(room.slots, 1, 100_001) == payload


async def check_blocks_do_not_touch_one_another(make: Make) -> None:
    async with make() as room:
        for number in range(1, 21):
            await store(room.slots, number, payload_of(number, 1000 + number))
        for number in (3, 7, 11):
            room.slots.free(number)
        for number in (21, 22, 23):
            await store(room.slots, number, payload_of(number, 900 + number))
        for number in range(1, 24):
            if number not in (3, 7, 11):
                size_bytes = (1000 if number < 21 else 900) + number
                assert await _read(room.slots, number, size_bytes) == payload_of(number, size_bytes)


async def check_room_is_bounded_and_comes_back(make: Make) -> None:
    async with make(capacity_bytes=1024 * 1024) as room:
        slots, claimed = room.slots, 0
        assert slots.used_bytes == 0
        while slots.claim(claimed + 1, 50_000):
            claimed += 1
            assert claimed * 50_000 <= slots.used_bytes <= slots.capacity_bytes
        full = slots.used_bytes
        assert claimed >= 2, "there is room for something"
        assert not slots.claim(claimed + 1, 50_000)
        assert slots.used_bytes == full, "a claim that fails has no effect"
        slots.free(1)
        assert slots.used_bytes < full
        await store(slots, 99, payload_of(99, 50_000))
        assert await _read(slots, 99, 50_000) == payload_of(99, 50_000)
        for number in [*range(2, claimed + 1), 99]:
            slots.free(number)
        assert slots.used_bytes == 0


async def check_it_grows_or_says_that_it_does_not(make: Make) -> None:
    async with make(capacity_bytes=1024 * 1024) as room:
        slots = room.slots
        await store(slots, 1)
        slots.resize(4 * 1024 * 1024)
        claimed = 1
        while slots.claim(claimed + 1, 50_000):
            claimed += 1
        assert 50_000 * (claimed - 1) <= slots.used_bytes <= slots.capacity_bytes <= 4 * 1024 * 1024
        assert slots.used_bytes > 0.8 * slots.capacity_bytes, "what it says is there to be had"
        slots.resize(512 * 1024)
        assert await _read(slots, 1) == payload_of(1), "what is claimed stays"
        for number in range(2, claimed + 1):
            slots.free(number)
        assert await _read(slots, 1) == payload_of(1)
        await store(slots, 1000)
        assert await _read(slots, 1000) == payload_of(1000)


async def check_what_never_fits_is_not_claimed(make: Make) -> None:
    async with make(capacity_bytes=1024 * 1024) as room:
        assert not room.slots.claim(1, room.slots.capacity_bytes + 1)
        assert room.slots.used_bytes == 0


async def check_freed_without_a_commit(make: Make) -> None:
    async with make() as room:
        assert room.slots.claim(1, 1000)
        room.slots.free(1)
        assert room.slots.claim(2, 1000)
        await room.slots.write(2, 0, payload_of(2, 400))
        room.slots.free(2)
        assert room.slots.used_bytes == 0


# --- slots that outlive their process --------------------------------------------------------------------------------


async def check_what_was_committed_is_found_again(make: Make) -> None:
    async with make() as room:
        if room.reopen is None:
            assert await room.slots.recover() == ()
            return
        records = {number: await store(room.slots, number) for number in (1, 2, 3)}
        room.slots.free(2)
        assert room.slots.claim(4, 1000)
        await room.slots.write(4, 0, payload_of(4))
        slots = await room.reopen()
        found = list(await slots.recover())
        assert [one.record for one in found] == [records[1], records[3]], "the oldest first, and nothing half"
        assert found[0].stored_at <= found[1].stored_at
        for one in found:
            assert await _read(slots, one.block_id) == payload_of(int.from_bytes(one.record.address.block_hash, "big"))
        await _goes_on(slots, found)


async def _goes_on(slots: Slots, found: list[Recovered]) -> None:
    """Recovered blocks are freed like others, and ids beyond theirs are free."""
    assert slots.used_bytes >= 1000 * len(found)
    next_id = 1 + max(one.block_id for one in found)
    await store(slots, next_id)
    for one in found:
        slots.free(one.block_id)
    assert slots.used_bytes >= 1000
    assert await _read(slots, next_id) == payload_of(next_id)
    slots.free(next_id)
    assert slots.used_bytes == 0


async def check_what_was_freed_stays_away(make: Make) -> None:
    async with make() as room:
        for number in range(1, 6):
            await store(room.slots, number)
        for number in range(1, 6):
            room.slots.free(number)
        if room.reopen is None:
            assert room.slots.used_bytes == 0
            return
        slots = await room.reopen()
        assert await slots.recover() == []
        assert slots.used_bytes == 0


async def check_what_is_hidden_is_still_read_and_not_found_again(make: Make) -> None:
    async with make() as room:
        records = {number: await store(room.slots, number) for number in (1, 2)}
        room.slots.hide(1)
        await room.slots.settle()
        assert await _read(room.slots, 1) == payload_of(1)
        if room.reopen is not None:
            slots = await room.reopen()
            assert [one.record for one in await slots.recover()] == [records[2]]
            return
        room.slots.hide(1)  # once is as good as twice
        room.slots.free(1)
        room.slots.free(2)
        assert room.slots.used_bytes == 0


CHECKS: Final[list[Check]] = [check for key, check in sorted(globals().items()) if key.startswith("check_")]
