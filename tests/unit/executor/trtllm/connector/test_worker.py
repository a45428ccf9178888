from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from unit.executor.trtllm.connector.making import HASHES, ROOT, new_area, prefix
from weir_chassis.testing import VirtualClock
from weir_executor.step_output import FullBlock
from weir_executor.trtllm.connector.area import Area
from weir_executor.trtllm.connector.area_view import AreaView
from weir_executor.trtllm.connector.copies import CopiedOut, Copies
from weir_executor.trtllm.connector.plan import Load, Save, StepPlan
from weir_executor.trtllm.connector.worker import LoadFailedError, RankWorker

BYTES = 8  # of one rank's block


class Store:
    def __init__(self) -> None:
        self.blocks: list[FullBlock] = []
        self.known: set[bytes] = set()
        self.error: Exception | None = None

    def wants(self, block_hash: bytes) -> bool:
        return block_hash not in self.known

    def offer(self, blocks: Sequence[FullBlock]) -> None:
        if self.error is not None:
            raise self.error
        self.blocks += blocks


class Event:
    ready = False

    def query(self) -> bool:
        return self.ready


class HeldCopies(Copies):
    """Ready when the event is."""

    def __init__(self, pool: Any, event: Event) -> None:
        super().__init__(pool)
        self._event = event

    def copy_out(self, block_ids: Sequence[int], stream: Any) -> CopiedOut:
        copied = super().copy_out(block_ids, stream)
        copied.done = self._event
        return copied


class World:
    """A rank, with threads that run when they are told to."""

    def __init__(self, directory: Path, rank: int = 0, ranks: int = 1, max_copying_bytes: int = 1 << 20) -> None:
        self.area: Area = new_area(directory)
        self.view = AreaView(self.area.path)
        self.store, self.clock, self.event = Store(), VirtualClock(), Event()
        self.calls: list[tuple[Callable[..., None], tuple[Any, ...], Future[None]]] = []
        self.pool = torch.zeros((6, 2, 2, 2), dtype=torch.uint8)
        self.worker = RankWorker(
            self.view,
            rank=rank,
            ranks=ranks,
            kv_dtype="auto",
            max_copying_bytes=max_copying_bytes,
            connect=lambda layout: self.store,
            run=self._run,
            clock=self.clock,
            make_copies=lambda pool: HeldCopies(pool, self.event),
        )
        self.worker.register_kv_caches(self.pool)

    def _run(self, function: Callable[..., None], *args: Any) -> Future[None]:
        self.calls.append((function, args, Future()))
        return self.calls[-1][2]

    def run_threads(self) -> None:
        calls, self.calls = self.calls, []
        for function, args, future in calls:
            try:
                future.set_result(function(*args))
            except Exception as error:
                future.set_exception(error)

    def stage(self, first: int, end: int, ranks: int = 1) -> None:
        self.area.stage(prefix(first, end, BYTES * ranks), HASHES)
        assert self.view.lease("1-0", self.view.staged(), HASHES, computed=first, most=5)


def values(world: World, block_id: int) -> list[int]:
    """That its bytes have."""
    return sorted(set(world.pool[block_id].flatten().tolist()))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def load(is_async: bool, skip: int = 0, ids: Sequence[int] = (4, 2), lease: str = "1-0") -> StepPlan:
    return StepPlan([Load(1, lease, skip, ids, is_async)])


def save(request_id: int = 1, ids: Sequence[int] = (3, 5)) -> StepPlan:
    return StepPlan(saves=[Save(request_id, ROOT, b"", HASHES[: len(ids)], ids)])


@pytest.mark.parametrize("asked_first", [True, False])
def test_a_load_that_will_not_come_is_told_of_as_over(world: World, asked_first: bool) -> None:
    plan = StepPlan(withdrawn=[1])
    if asked_first:
        assert world.worker.get_finished([], [1]) == ([], [])
        world.worker.start_load_kv(plan, None)
        assert world.worker.get_finished([], []) == ([], [1])
    else:
        world.worker.start_load_kv(plan, None)
        assert world.worker.get_finished([], [1]) == ([], [1])
    assert world.worker.get_finished([], []) == ([], [])
    assert not world.worker.busy


def test_what_is_loaded_in_line_is_there_when_the_step_begins(world: World) -> None:
    world.stage(0, 3)
    world.worker.start_load_kv(load(False, skip=1), None)
    assert values(world, 4) == [1]
    assert values(world, 2) == [2]
    assert values(world, 3) == [0]
    assert world.worker.get_finished([], []) == ([], [])


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_rank_takes_its_own_part_of_a_block(tmp_path: Path, rank: int) -> None:
    world = World(tmp_path, rank, ranks=3)
    parts = b"".join(bytes([10 * place + part]) * BYTES for place in range(2) for part in range(3))
    blocks = [parts[: 3 * BYTES], parts[3 * BYTES :]]
    world.area.stage(prefix(0, 2, 1).__class__(0, blocks), HASHES)
    assert world.view.lease("1-0", world.view.staged(), HASHES, computed=0, most=5)
    world.worker.start_load_kv(load(False), None)
    assert (values(world, 4), values(world, 2)) == ([rank], [10 + rank])


def test_what_is_loaded_beside_the_batch_is_told_of_once_it_is_there_and_asked_for(world: World) -> None:
    world.stage(0, 2)
    world.worker.start_load_kv(load(True), None)
    assert values(world, 4) == [0]
    world.run_threads()
    assert world.worker.get_finished([], []) == ([], []), "nobody has asked for it"
    assert world.worker.get_finished([], [1]) == ([], [1])
    assert world.worker.get_finished([], []) == ([], []), "and only once"
    assert values(world, 2) == [1]
    assert not world.worker.busy


@pytest.mark.parametrize("plan", [load(False, lease="gone"), load(True, lease="gone"), load(False, skip=2)])
def test_an_offer_that_cannot_be_kept_ends_the_engine(world: World, plan: StepPlan) -> None:
    world.stage(0, 2)
    with pytest.raises(LoadFailedError, match="request 1"):
        world.worker.start_load_kv(plan, None)


def test_a_copy_in_that_fails_ends_the_engine(world: World) -> None:
    world.stage(0, 2)
    world.worker.start_load_kv(load(True, ids=(4, 99)), None)
    world.run_threads()
    with pytest.raises(LoadFailedError, match="IndexError"):
        world.worker.get_finished([], [1])


async def test_nobody_is_parked_for_ever(world: World) -> None:
    world.stage(0, 2)
    world.worker.start_load_kv(load(True), None)
    assert world.worker.get_finished([], [1]) == ([], [])
    await world.clock.advance(29)
    assert world.worker.get_finished([], []) == ([], [])
    await world.clock.advance(2)
    with pytest.raises(LoadFailedError, match="have not come for 30 s"):
        world.worker.get_finished([], [])


def test_a_full_block_goes_to_the_store_once_it_is_out_and_its_request_is_free_then(world: World) -> None:
    world.pool[3].fill_(33)
    world.pool[5].fill_(55)
    world.worker.wait_for_save(save(), None)
    assert world.worker.get_finished([1], []) == ([], [])
    world.event.ready = True
    assert world.worker.get_finished([], []) == ([1], []), "the engine may have its blocks back"
    assert world.store.blocks == []
    world.run_threads()
    assert [each.block_hash for each in world.store.blocks] == HASHES[:2]
    assert [each.parent_block_hash for each in world.store.blocks] == [b"", HASHES[0]]
    assert [each.payload for each in world.store.blocks] == [b"\x21" * BYTES, b"\x37" * BYTES]
    assert {each.cache_scope for each in world.store.blocks} == {ROOT}
    assert world.worker.get_finished([1], []) == ([1], []), "a later request of this id"
    assert not world.worker.busy


def test_what_the_store_knows_is_not_copied_out(world: World) -> None:
    world.event.ready = True
    world.store.known = {HASHES[0]}
    world.worker.wait_for_save(save(), None)
    assert world.worker.get_finished([1], []) == ([1], [])
    world.run_threads()
    assert [(each.block_hash, each.parent_block_hash) for each in world.store.blocks] == [(HASHES[1], HASHES[0])]


def test_what_there_is_no_room_for_is_dropped_and_keeps_nobody(tmp_path: Path) -> None:
    world = World(tmp_path, max_copying_bytes=3 * BYTES)
    for request_id in (1, 2, 3):
        world.worker.wait_for_save(save(request_id), None)
    assert world.worker.counts["dropped"] == 3
    assert world.worker.get_finished([1, 2, 3], []) == ([3], [])
    world.event.ready = True
    assert world.worker.get_finished([], []) == ([1, 2], [])
    world.run_threads()
    assert len(world.store.blocks) == 3
    world.worker.wait_for_save(save(4), None)
    assert world.worker.counts["dropped"] == 3, "there is room again"


async def test_a_copy_out_that_hangs_is_given_up(world: World) -> None:
    world.worker.wait_for_save(save(), None)
    assert world.worker.get_finished([1], []) == ([], [])
    await world.clock.advance(31)
    assert world.worker.get_finished([], []) == ([1], [])
    world.run_threads()
    assert world.store.blocks == []
    assert world.worker.counts["given up"] == 2


def test_an_engine_that_calls_no_hook_any_more_saves_all_the_same(world: World) -> None:
    world.worker.wait_for_save(save(), None)
    assert world.worker.end_saves() == {1}
    world.event.ready = True
    assert world.worker.end_saves() == set()
    world.run_threads()
    assert [block.block_hash for block in world.store.blocks] == HASHES[:2]


def test_a_copy_out_that_the_device_fails_is_nobodys_trouble(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def query(self: Event) -> bool:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(Event, "query", query)
    world.worker.wait_for_save(save(), None)
    assert world.worker.get_finished([1], []) == ([1], [])
    assert (world.worker.counts["failed"], world.worker.busy) == (3, False)


def test_a_save_that_fails_is_nobodys_trouble(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.worker.wait_for_save(save(ids=(3, 99)), None)
    world.event.ready = True
    world.store.error = RuntimeError("the loop is closed")
    world.worker.wait_for_save(save(2), None)
    assert world.worker.get_finished([1, 2], []) == ([1, 2], [])
    world.run_threads()
    assert world.worker.counts["failed"] == 2
    assert "the loop is closed" in caplog.text


def test_blocks_of_an_aborted_request_are_kept_until_nothing_writes_to_them(world: World) -> None:
    world.stage(0, 2)
    world.worker.start_load_kv(load(True), None)
    assert world.worker.get_finished([1], []) == ([], [])
    world.run_threads()
    assert world.worker.get_finished([], []) == ([1], [])
    assert not world.worker.busy


def test_a_pool_with_gaps_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="one after another"):
        Copies(torch.zeros((4, 6, 2))[:, ::2])


def test_any_type_of_element_is_copied_as_bytes() -> None:
    pool = torch.arange(24, dtype=torch.bfloat16).reshape(3, 2, 4)
    copies = Copies(pool)
    assert copies.block_bytes == 16
    payload = copies.copy_out([1], None).payload(0)
    assert torch.equal(torch.frombuffer(bytearray(payload), dtype=torch.bfloat16), pool[1].flatten())
    copies.copy_in([memoryview(bytearray(payload))], [2], None)
    assert torch.equal(pool[2], pool[1])
