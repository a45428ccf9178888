from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from unit.kvstore.making import NAMESPACE, address, check_integrity, in_pieces, make_store, name, whole
from weir_chassis.errors import DeadlineExceeded, InvalidArgument, Overloaded
from weir_chassis.testing import VirtualClock, assert_no_leases, settle
from weir_kvstore import staging as module
from weir_kvstore.put import PutPiece, Puts
from weir_kvstore.staging import PutBegin, PutResult
from weir_kvstore.store import BlockStore


def make_puts(store: BlockStore, max_open: int = 10) -> Puts:
    return Puts(store, max_open=max_open, idle_seconds=5)


async def put(store: BlockStore, *pieces: PutPiece) -> PutResult:
    async with make_puts(store).open("me") as one:
        one.begin(PutBegin(NAMESPACE))
        for piece in pieces:
            await one.add(piece)
        return one.commit()


def held(store: BlockStore, *numbers: int) -> list[bool]:
    return [store.ram.index.find(address(number)) is not None for number in numbers]


def left(store: BlockStore) -> tuple[int, int]:
    """Records and bytes, after everything was looked through."""
    check_integrity(store)
    assert_no_leases(store.ledger)
    return len(store.ram.index), store.ram.slots.used_bytes


async def test_room_is_taken_at_the_first_piece_and_blocks_are_seen_at_the_commit() -> None:
    store = await make_store(VirtualClock())
    puts = make_puts(store)
    async with puts.open("me") as one:
        one.begin(PutBegin(NAMESPACE))
        first, *rest = in_pieces(1, b"0123456789", 4)
        await one.add(first)
        assert (store.ram.slots.used_bytes, store.ram.index.reserved_bytes, len(puts)) == (10, 10, 1)
        for piece in rest:
            await one.add(piece)
        assert held(store, 1) == [False]
        assert one.commit() == PutResult(stored=1)
        assert held(store, 1) == [True]
        assert store.ram.index.reserved_bytes == 0
    assert left(store) == (1, 10)


@pytest.mark.parametrize("how", ["return", "raise", "cancel"])
async def test_without_a_commit_nothing_is_left(how: str) -> None:
    store = await make_store(VirtualClock())

    async def tear() -> None:
        async with make_puts(store).open("me") as one:
            one.begin(PutBegin(NAMESPACE))
            await one.add(whole(1, b"whole"))
            await one.add(next(iter(in_pieces(2, b"0123456789", 4))))
            if how == "raise":
                raise KeyError
            if how == "cancel":
                await asyncio.Event().wait()

    task = asyncio.ensure_future(tear())
    await settle()
    task.cancel()
    await asyncio.wait([task])
    assert left(store) == (0, 0)


async def test_what_does_not_verify_is_freed_at_once_and_by_itself() -> None:
    store = await make_store(VirtualClock(), capacity_bytes=20)
    wrong = replace(whole(1, b"0123456789"), checksum=1)
    short = next(iter(in_pieces(2, b"0123456789", 9)))
    result = await put(store, wrong, short, whole(3, b"0123456789"), wrong)
    assert result == PutResult(stored=1, corrupt=3)
    assert held(store, 1, 2, 3) == [False, False, True]
    assert store.ram.counters.corrupt == 3
    assert left(store) == (1, 10)


async def test_a_checksum_of_too_few_bytes_does_not_verify() -> None:
    store = await make_store(VirtualClock())
    assert await put(store, replace(whole(1, b"012345678"), payload_bytes=10)) == PutResult(corrupt=1)
    assert left(store) == (0, 0)


async def test_leaving_a_put_does_not_cancel_its_task() -> None:
    store = await make_store(VirtualClock())
    await put(store, whole(1, b"a"))
    await settle()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_the_same_block_may_come_again_in_one_put() -> None:
    store = await make_store(VirtualClock())
    wrong = replace(whole(1, b"right"), checksum=1)
    assert await put(store, wrong, whole(1, b"right"), whole(1, b"other")) == PutResult(1, 1, 1)
    assert left(store) == (1, 5)


async def test_a_held_block_takes_no_room() -> None:
    store = await make_store(VirtualClock(), capacity_bytes=10)
    await put(store, whole(1, b"0123456789"))
    assert await put(store, *in_pieces(1, b"abcdefghij", 3)) == PutResult(present=1)
    assert left(store) == (1, 10)


async def test_a_held_block_that_went_meanwhile_was_refused() -> None:
    store = await make_store(VirtualClock())
    await put(store, whole(1, b"gone"), whole(2, b"stays"))
    async with make_puts(store).open("me") as one:
        one.begin(PutBegin(NAMESPACE))
        await one.add(whole(1, b"gone"))
        await one.add(whole(2, b"stays"))
        await store.remove(NAMESPACE, [name(1)])
        assert one.commit() == PutResult(present=1, refused=1)
    assert left(store) == (1, 5)


async def test_staged_blocks_push_out_old_ones_but_not_each_other() -> None:
    store = await make_store(VirtualClock(), capacity_bytes=20)
    await put(store, whole(1, bytes(10)), whole(2, bytes(10)))
    result = await put(store, *(whole(number, bytes(10)) for number in (3, 4, 5)))
    assert result == PutResult(stored=2, refused=1)
    assert held(store, 1, 2, 3, 4, 5) == [False, False, True, True, False]
    assert (store.ram.counters.evicted, store.ram.counters.refused) == (2, 1)


async def test_staging_is_bounded() -> None:
    store = await make_store(VirtualClock(), capacity_bytes=100, max_staged_bytes=25)
    await put(store, *(whole(number, bytes(10)) for number in (1, 2)))
    result = await put(store, *(whole(number, bytes(10)) for number in (3, 4, 5)))
    assert result == PutResult(stored=2, refused=1)
    assert held(store, 1, 2, 3, 4) == [True] * 4


async def test_a_refused_block_is_still_read_in_order() -> None:
    store = await make_store(VirtualClock(), capacity_bytes=10)
    pieces = list(in_pieces(1, bytes(20), 5))
    assert await put(store, *pieces) == PutResult(refused=1)
    with pytest.raises(InvalidArgument, match=r"15 where 10 comes next"):
        await put(store, pieces[0], pieces[1], pieces[3])


async def test_records_are_bounded() -> None:
    store = await make_store(VirtualClock(), max_blocks=2)
    assert await put(store, whole(1, b"a"), whole(2, b"b")) == PutResult(stored=2)
    assert await put(store, whole(3, b"c")) == PutResult(stored=1)
    assert len(store.ram.index) == 2


async def test_blocks_in_one_put_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PUT_BLOCKS", 2)
    store = await make_store(VirtualClock())
    with pytest.raises(InvalidArgument, match="more than 2 blocks"):
        await put(store, *(whole(number, b"a") for number in range(3)))
    assert left(store) == (0, 0)


async def test_a_silent_put_is_ended() -> None:
    clock = VirtualClock()
    store = await make_store(clock)

    async def begin_and_wait() -> None:
        async with make_puts(store).open("me") as one:
            one.begin(PutBegin(NAMESPACE))
            await one.add(whole(1, b"staged"))
            await clock.sleep(4)
            await one.add(whole(2, b"heard"))
            await asyncio.Event().wait()

    task = asyncio.ensure_future(begin_and_wait())
    for seconds, ended in ((4, 0), (4.9, 0), (0.1, 1)):
        await clock.advance(seconds)
        assert len(store.ledger.expire()) == ended
    assert left(store) == (0, 0)  # in the very step that found it
    with pytest.raises(DeadlineExceeded, match="nothing was heard for 5 s"):
        await task


async def test_a_message_after_the_end_is_refused() -> None:
    """The sweep and a message may come in one turn of the loop: then the put is over before its task knows."""
    clock = VirtualClock()
    store = await make_store(clock)
    with pytest.raises(DeadlineExceeded):
        async with make_puts(store).open("me") as one:
            one.begin(PutBegin(NAMESPACE))
            await clock.advance(5)
            store.ledger.expire()
            await one.add(whole(1, b"late"))
    assert left(store) == (0, 0)


async def test_open_puts_are_bounded() -> None:
    clock = VirtualClock()
    store = await make_store(clock)
    puts = make_puts(store, max_open=2)
    async with puts.open("a"):
        async with puts.open("b"):
            with pytest.raises(Overloaded, match="2 puts are open") as raised:
                await puts.open("c").__aenter__()
        assert raised.value.retry_after == timedelta(seconds=1), "nothing was measured yet"
        async with puts.open("d"):
            assert len(puts) == 2
    assert len(puts) == 0


async def test_the_wait_is_measured_and_spread_over_those_refused() -> None:
    clock = VirtualClock()
    store = await make_store(clock)
    puts = make_puts(store, max_open=1)
    for _ in range(40):
        async with puts.open("a"):
            await clock.advance(0.5)
    waits = []
    async with puts.open("a"):
        for _ in range(3):
            with pytest.raises(Overloaded) as raised:
                await puts.open("b").__aenter__()
            assert raised.value.retry_after is not None
            waits.append(raised.value.retry_after.total_seconds())
    assert waits == pytest.approx([0.5, 1.0, 1.5], rel=0.1)


async def test_a_put_that_lapses_counts_as_one_that_ended() -> None:
    clock = VirtualClock()
    store = await make_store(clock)
    puts = make_puts(store, max_open=1)
    with pytest.raises(DeadlineExceeded):
        async with puts.open("quiet"):
            await clock.advance(5)
            store.ledger.expire()
            async with puts.open("next"):  # its task does not know yet, and its place is taken already
                with pytest.raises(Overloaded) as raised:
                    await puts.open("refused").__aenter__()
            await asyncio.Event().wait()
    assert raised.value.retry_after == timedelta(seconds=5)
