"""The store against a model, over any history: never a wrong byte, never too many, never one that is leased lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from unit.kvstore.making import NAMESPACE, address, check_integrity, in_pieces, make_store, name, whole
from unit.kvstore.test_put import put
from weir_chassis.errors import DeadlineExceeded, LeaseExpired, NotFound, Overloaded
from weir_chassis.testing import VirtualClock, assert_no_leases, settle
from weir_kvstore.block import State
from weir_kvstore.checksum import checksum
from weir_kvstore.put import Put, PutPiece, Puts
from weir_kvstore.reads import read_lease
from weir_kvstore.staging import PutBegin, PutResult
from weir_kvstore.store import Match

T = TypeVar("T")
OTHER = b"o" * 16
CAPACITY_BYTES, MAX_STAGED_BYTES, MAX_LEASES, MAX_PUTS, IDLE_SECONDS = 100, 70, 4, 3, 5
numbers = st.integers(1, 8)
sizes = st.integers(1, 40)
hows = st.sampled_from(["right", "right", "pieces", "bad", "short"])
seconds = st.floats(0.1, 8)


@dataclass
class ModelPut:
    """An open put, fed from outside: a task of its own, as a call is."""

    messages: asyncio.Queue[PutPiece | None]
    task: asyncio.Task[PutResult]
    last_heard: float
    offered: list[tuple[int, bytes]] = field(default_factory=list)  # whole and right


@dataclass
class ModelLease:
    expires_at: float
    blocks: list[tuple[int, bytes]]


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = VirtualClock()
        self.store = self.run(
            make_store(
                self.clock,
                capacity_bytes=CAPACITY_BYTES,
                max_staged_bytes=MAX_STAGED_BYTES,
                max_blocks=12,
                max_live_leases=MAX_LEASES,
            )
        )
        self.puts = Puts(self.store, max_open=MAX_PUTS, idle_seconds=IDLE_SECONDS)
        self.visible: dict[int, bytes] = {}  # at most these can be found; eviction may have taken some
        self.leases: dict[str, ModelLease] = {}
        self.open: list[ModelPut] = []
        self.versions = count()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def payload(self, number: int, size_bytes: int) -> bytes:
        """Bytes that no other put ever had."""
        return f"{number}:{next(self.versions)}:".encode().ljust(size_bytes, b"x")[: max(size_bytes, 8)]

    def now(self) -> float:
        return self.clock.monotonic()

    # --- putting

    @precondition(lambda self: len(self.open) < MAX_PUTS)
    @rule()
    def begin(self) -> None:
        messages: asyncio.Queue[PutPiece | None] = asyncio.Queue()

        async def start() -> ModelPut:
            task = asyncio.ensure_future(self._call(messages))
            await settle()
            return ModelPut(messages, task, self.now())

        self.open.append(self.run(start()))

    async def _call(self, messages: asyncio.Queue[PutPiece | None]) -> PutResult:
        async with self.puts.open("put") as one:
            one.begin(PutBegin(NAMESPACE))
            return await self._feed(one, messages)

    async def _feed(self, one: Put, messages: asyncio.Queue[PutPiece | None]) -> PutResult:
        while (piece := await messages.get()) is not None:
            await one.add(piece)
        return one.commit()

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(),
        number=numbers,
        size_bytes=sizes,
        how=st.sampled_from(["right", "right", "pieces", "bad", "short"]),
    )
    def add(self, data: st.DataObject, number: int, size_bytes: int, how: str) -> None:
        one = data.draw(st.sampled_from(self.open))
        payload = self.payload(number, size_bytes)
        pieces = list(in_pieces(number, payload, 5)) if how in ("pieces", "short") else [whole(number, payload)]
        if how == "short":
            pieces.pop()
        if how == "bad":
            pieces = [PutPiece(name(number), b"", len(payload), checksum(payload) ^ 1, 0, payload)]
        if how in ("right", "pieces"):
            one.offered.append((number, payload))
        one.last_heard = self.now()
        self.run(self._send(one, *pieces))
        assert not one.task.done()

    async def _send(self, one: ModelPut, *pieces: PutPiece | None) -> None:
        for piece in pieces:
            one.messages.put_nowait(piece)
        await settle()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        one = self._close(data)
        before = {number for number, _ in one.offered if self.store.ram.index.find(address(number))}
        self.run(self._send(one, None))
        result = one.task.result()
        fresh: dict[int, list[bytes]] = {}
        for number, payload in one.offered:
            if number not in before:
                fresh.setdefault(number, []).append(payload)
        for number in before:
            assert self.store.ram.index.find(address(number)), "a commit takes nothing away"
        stored = {number for number in fresh if self.store.ram.index.find(address(number))}
        assert len(stored) == result.stored
        for number in stored:
            block = self.store.ram.index.find(address(number))
            assert block is not None
            (self.visible[number],) = [p for p in fresh[number] if checksum(p) == block.checksum]

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def tear(self, data: st.DataObject) -> None:
        one = self._close(data)

        async def cancel() -> None:
            one.task.cancel()
            await asyncio.wait([one.task])

        self.run(cancel())
        assert one.task.cancelled()

    def _close(self, data: st.DataObject) -> ModelPut:
        return self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))

    # --- reading

    @rule(wanted=st.lists(numbers, min_size=1, max_size=4, unique=True), duration=st.one_of(st.just(0.0), seconds))
    def match(self, wanted: list[int], duration: float) -> None:
        if duration and len(self._live()) == MAX_LEASES:
            with pytest.raises(Overloaded) as raised:
                self.run(self._match(wanted, duration))
            assert raised.value.retry_after
            return
        found = self.run(self._match(wanted, duration))
        held = [(number, self.visible[number]) for number in wanted[: found.matched_blocks]]
        assert (found.lease_id is not None) == bool(held and duration)
        if found.lease_id is not None:
            assert found.leased_bytes == sum(len(payload) for _, payload in held)
            self.leases[found.lease_id] = ModelLease(self.now() + duration, held)

    async def _match(self, wanted: list[int], duration: float) -> Match:
        hashes = [name(number) for number in wanted]
        return await self.store.match(NAMESPACE, hashes, skip_blocks=0, seconds=duration, owner="read")

    def _live(self) -> list[ModelLease]:
        return [lease for lease in self.leases.values() if lease.expires_at > self.now()]

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.leases)))
        lease = self.leases[lease_id]

        async def read() -> list[tuple[bytes, bytes]]:
            pieces = read_lease(self.store, lease_id, owner="read")
            return [(piece.record.address.block_hash, bytes(piece.chunk)) async for piece in pieces]

        if lease.expires_at > self.now():
            assert self.run(read()) == [(name(number), payload) for number, payload in lease.blocks]
        else:
            with pytest.raises(LeaseExpired):
                self.run(read())

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), duration=seconds)
    def renew(self, data: st.DataObject, duration: float) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.leases)))
        lease = self.leases[lease_id]
        if lease.expires_at > self.now():
            self.store.leases.renew(lease_id, duration)
            lease.expires_at = max(lease.expires_at, self.now() + duration)
        else:
            with pytest.raises(LeaseExpired):
                self.store.leases.renew(lease_id, duration)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.leases)))
        self.store.leases.release(lease_id)
        del self.leases[lease_id]
        with pytest.raises((NotFound, LeaseExpired)):
            self.store.leases.blocks(lease_id)

    # --- removing, waiting

    @rule(wanted=st.one_of(st.none(), st.lists(numbers, max_size=4)))
    def remove(self, wanted: list[int] | None) -> None:
        self.run(self.store.remove(NAMESPACE, None if wanted is None else [name(number) for number in wanted]))
        for number in list(self.visible) if wanted is None else wanted:
            self.visible.pop(number, None)

    @rule(duration=seconds, sweep=st.booleans())
    def wait(self, duration: float, sweep: bool) -> None:
        self.run(self.clock.advance(duration))
        if not sweep:
            return
        self.run(self._sweep())
        assert len(self.store.leases) == len(self._live())
        self._drop_idle()

    async def _sweep(self) -> None:
        self.store.ledger.expire()
        await settle()

    def _drop_idle(self) -> None:
        """A put that was silent for too long may be over, once somebody has looked; nobody else may be."""
        for one in [one for one in self.open if one.task.done()]:
            assert self.now() >= one.last_heard + IDLE_SECONDS
            with pytest.raises(DeadlineExceeded):
                one.task.result()
            self.open.remove(one)

    # --- what always holds

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.run(settle())
        self._drop_idle()
        check_integrity(self.store)
        assert self.store.ram.slots.used_bytes <= CAPACITY_BYTES
        assert self.store.ram.index.reserved_bytes <= MAX_STAGED_BYTES
        assert len(self.puts) == len(self.open)
        leased = {block for lease in self._live() for block in lease.blocks}
        for number in range(1, 9):
            block = self.store.ram.index.find(address(number))
            if block is None and number in self.visible:
                assert (number, self.visible.pop(number)) not in leased, "a leased block was evicted"
            elif block is not None:
                assert block.checksum == checksum(self.visible[number]), "seen without a commit"

    def teardown(self) -> None:
        for lease_id in self.leases:
            self.store.leases.release(lease_id)
        self.run(self._end_puts())
        assert_no_leases(self.store.ledger)
        assert not any(block.references for block in self.store.ram.index.blocks())
        assert self.store.ram.index.reserved_bytes == 0
        self.run(self.store.remove(NAMESPACE, None))
        assert (len(self.store.ram.index), self.store.ram.slots.used_bytes) == (0, 0)
        self.runner.close()

    async def _end_puts(self) -> None:
        for one in self.open:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in self.open), return_exceptions=True)


def test_any_history() -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(max_examples=40, stateful_step_count=40, suppress_health_check=list(HealthCheck)),
    )


async def test_skipped_blocks_are_in_use_where_they_are_held() -> None:
    store = await make_store(VirtualClock(), capacity_bytes=40)
    await put(store, *(whole(number, bytes(10)) for number in (1, 2)))
    await put(store, *(whole(number, bytes(10)) for number in (3, 4)))
    chain = [name(1), name(2), name(9)]
    assert await store.match(NAMESPACE, chain, skip_blocks=2, seconds=10, owner="me") == Match(2)
    assert (store.ram.counters.hits, store.ram.counters.misses) == (0, 1)
    await put(store, whole(5, bytes(20)))
    assert [store.ram.index.find(address(n)) is not None for n in (1, 2, 3, 4)] == [True, True, False, False]


async def test_one_namespace_is_removed_and_no_other() -> None:
    store = await make_store(VirtualClock())
    await put(store, whole(1, b"mine"))
    async with Puts(store, max_open=1, idle_seconds=1).open("me") as one:
        one.begin(PutBegin(OTHER))
        await one.add(whole(1, b"theirs"))
        one.commit()
    assert await store.remove(NAMESPACE, None) == 1
    assert store.ram.index.find(address(1, OTHER)) is not None
    assert store.ram.report().bytes == 6


async def test_a_large_namespace_is_removed_in_turns() -> None:
    blocks = 5000
    store = await make_store(VirtualClock(), capacity_bytes=blocks, max_blocks=blocks)
    await put(store, *(whole(number, b"x") for number in range(blocks - 1000)))
    await put(store, *(whole(number, b"x") for number in range(blocks - 1000, blocks)))
    removing = asyncio.create_task(store.remove(NAMESPACE, None))
    await asyncio.sleep(0)
    assert 0 < len(store.ram.index) < blocks, "others have had their turn"
    # One that is found after the removal began is evicted before its turn comes, and is not counted twice.
    last = store.ram.index.find(address(blocks - 1))
    assert last is not None
    store.ram.hide([last], State.QUARANTINED)
    assert await removing == blocks - 1
    assert (len(store.ram.index), store.ram.slots.used_bytes) == (0, 0)
    check_integrity(store)


async def test_lapsed_leases_are_ended_rather_than_a_put_refused() -> None:
    clock = VirtualClock()
    store = await make_store(clock, capacity_bytes=10)
    await put(store, whole(1, bytes(10)))
    await store.match(NAMESPACE, [name(1)], skip_blocks=0, seconds=1, owner="me")
    assert await put(store, whole(2, bytes(10))) == PutResult(refused=1)
    await clock.advance(1)
    assert await put(store, whole(2, bytes(10))) == PutResult(stored=1)
