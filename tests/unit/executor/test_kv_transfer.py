"""The kvstore as an optimisation: what it has is loaded, and whatever it does, every request is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from contract.executor_contract import calling, connect, prompt_of, submit, until_idle
from unit.executor.copiers import COPIERS
from unit.executor.store_double import SharingDouble, StoreDouble, serve_store
from weir.executor.v1 import executor_pb2 as pb
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir.kvstore.v1.block_hash import HashScope, block_hashes, namespace_fingerprint, scope_root
from weir_chassis.errors import Overloaded, reason_name
from weir_chassis.server import Chassis, new_chassis
from weir_chassis.testing import assert_no_leases, serve_in_memory
from weir_executor.engine import Engine
from weir_executor.fake import FakeEngine, FakeEngineConfig
from weir_executor.kv_transfer import ArenaTransport, KvTransfer, LoaderLimits, TransferLimits, WriterLimits
from weir_executor.metrics import ExecutorMetrics
from weir_executor.model_files import ModelFiles
from weir_executor.request import GenerationRequest, Sampling
from weir_executor.service import serving
from weir_executor.settings import ExecutorSettings
from weir_executor.step_output import FullBlock

VERSION = ModelVersion(model="tiny", revision="r1", tokenizer_hash="t1")
FILES = ModelFiles(VERSION, Sampling(), {})
ROOT = scope_root(HashScope("tiny", "r1", "t1"))
NAMESPACE = namespace_fingerprint(ROOT, kv_dtype="uint8", kv_layout="fake", block_size=16)
BLOCK_BYTES = 64
LIMITS = TransferLimits(
    LoaderLimits(deadline_seconds=30.0, bytes_per_second=1e9, min_blocks=2, budget_bytes=1 << 20, max_loads=4),
    WriterLimits(queue_bytes=1 << 20, deadline_seconds=0.5, bytes_per_second=1e9),
)
# Where what the store does not do is waited for.
IMPATIENT = replace(LIMITS, load=replace(LIMITS.load, deadline_seconds=0.1))


_sharing: dict[str, Path] = {}


@pytest.fixture(params=["by_value", "by_reference"], autouse=True)
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Every test here holds whether the store shares its memory or not."""
    if request.param == "by_reference":
        _sharing["directory"] = tmp_path
    yield
    _sharing.clear()


def make_store() -> StoreDouble:
    return SharingDouble(_sharing["directory"]) if _sharing else StoreDouble()


def payload(i: int) -> bytes:
    return bytes([i]) * (BLOCK_BYTES - 1) + b"."


def request_of(blocks: int, *, salt: int = 0, scope: bytes = ROOT) -> GenerationRequest:
    """A prompt of so many full blocks and one token more."""
    prompt = prompt_of(16 * blocks + 1, salt)
    return GenerationRequest(1, prompt, 8, block_hashes(scope, prompt, 16), cache_scope=scope)


def fill(store: StoreDouble, hashes: Sequence[bytes], namespace: bytes = NAMESPACE) -> None:
    for i, block_hash in enumerate(hashes):
        store.blocks[namespace, block_hash] = payload(i)


@dataclass
class Bench:
    store: StoreDouble
    transfer: KvTransfer
    chassis: Chassis

    async def loaded(self, request: GenerationRequest) -> list[bytes]:
        """The payloads that came, their memory given back at once."""
        plan = self.transfer.plan(request)
        held = await self.transfer.load(plan) if plan is not None else None
        if held is None:
            return []
        held.release()
        return [bytes(block) for block in held.prefix.blocks]

    def count(self, metric: str, **labels: str) -> float:
        return self.chassis.metrics.registry.get_sample_value(f"weir_executor_{metric}_total", labels) or 0.0

    def outcomes(self, metric: str = "kv_loads") -> dict[str, float]:
        return {
            sample.labels["outcome"]: sample.value
            for family in self.chassis.metrics.registry.collect()
            for sample in family.samples
            if sample.name == f"weir_executor_{metric}_total"
        }


@asynccontextmanager
async def bench(limits: TransferLimits = LIMITS, engine: Engine | None = None) -> AsyncIterator[Bench]:
    """The transfer alone, with a store in memory. At its end no lease and no byte is held."""
    store, chassis = make_store(), new_chassis("executor")
    engine = engine or FakeEngine()
    async with serve_store(store) as channel:
        transfer = KvTransfer(
            ArenaTransport(channel, chassis.clock, COPIERS[-1]),
            engine,
            limits,
            metrics=ExecutorMetrics(chassis.metrics),
            clock=chassis.clock,
            random=chassis.random,
        )
        async with chassis.background:
            chassis.background.start(transfer.run(), name="put_blocks")
            yield Bench(store, transfer, chassis)
        store.answering.set()
        await transfer.close()
        await until(lambda: not store.leases)
    assert transfer.held_bytes == 0
    assert chassis.background.failure is None


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # of things that have no event to wait for
            await asyncio.sleep(0.002)


# ── loading ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_stored_is_loaded() -> None:
    async with bench() as b:
        request = request_of(6)
        fill(b.store, request.block_hashes[:4])
        assert await b.loaded(request) == [payload(i) for i in range(4)]
        await until(lambda: b.store.released == 1)
        assert b.outcomes() == {"hit": 1}
        assert b.count("kv_load_bytes") == 4 * BLOCK_BYTES


async def test_a_miss_leases_and_gets_nothing() -> None:
    async with bench() as b:
        assert await b.loaded(request_of(6)) == []
        assert (b.store.gets, b.store.released) == (0, 0)
        assert b.outcomes() == {"miss": 1}


async def test_the_last_token_is_always_computed() -> None:
    async with bench() as b:
        prompt = prompt_of(64)
        request = GenerationRequest(1, prompt, 8, block_hashes(ROOT, prompt, 16), cache_scope=ROOT)
        fill(b.store, request.block_hashes)
        assert len(await b.loaded(request)) == 3


async def test_another_scope_is_another_namespace() -> None:
    async with bench() as b:
        salted = scope_root(HashScope("tiny", "r1", "t1", tenant_salt="acme"))
        request = request_of(4, scope=salted)
        fill(b.store, request.block_hashes)
        assert await b.loaded(request) == []
        fingerprint = namespace_fingerprint(salted, kv_dtype="uint8", kv_layout="fake", block_size=16)
        assert b.store.matches[0].namespace == fingerprint


async def test_what_the_engine_holds_is_skipped() -> None:
    engine = FakeEngine()
    engine.cached_prefix_blocks = lambda block_hashes: 2  # type: ignore[method-assign]
    async with bench(engine=engine) as b:
        request = request_of(6)
        fill(b.store, request.block_hashes)
        plan = b.transfer.plan(request)
        assert plan is not None
        held = await b.transfer.load(plan)
        assert held is not None
        assert held.prefix.first_block == 2
        assert [bytes(block) for block in held.prefix.blocks] == [payload(i) for i in range(2, 6)]
        assert b.store.matches[0].skip_blocks == 2
        assert b.transfer.held_bytes == 4 * BLOCK_BYTES
        held.release()


@pytest.mark.parametrize("blocks", [0, 1])
async def test_too_little_to_gain_is_not_asked_for(blocks: int) -> None:
    async with bench() as b:
        assert b.transfer.plan(request_of(blocks)) is None
        assert b.transfer.plan(replace(request_of(8), block_hashes=())) is None
        assert b.store.matches == []


async def test_too_little_found_is_not_got() -> None:
    async with bench() as b:
        request = request_of(6)
        fill(b.store, request.block_hashes[:1])
        assert await b.loaded(request) == []
        assert b.store.gets == 0
        await until(lambda: b.store.released == 1)


async def test_blocks_in_pieces() -> None:
    async with bench() as b:
        request = request_of(4)
        fill(b.store, request.block_hashes)
        b.store.piece_bytes = 24
        assert await b.loaded(request) == [payload(i) for i in range(4)]


async def test_only_what_is_sound_before_a_corrupt_block_is_used() -> None:
    async with bench() as b:
        request = request_of(6)
        fill(b.store, request.block_hashes)
        b.store.corrupt.add(request.block_hashes[3])
        assert await b.loaded(request) == [payload(i) for i in range(3)]
        b.store.corrupt.add(request.block_hashes[0])
        assert await b.loaded(request) == []


async def test_blocks_of_another_size_are_refused() -> None:
    async with bench() as b:
        request = request_of(4)
        for block_hash in request.block_hashes:
            b.store.blocks[NAMESPACE, block_hash] = b"x" * (BLOCK_BYTES + 1)
        assert await b.loaded(request) == []
        assert b.outcomes() == {"corrupt": 1}


async def test_what_came_before_the_store_broke_off_is_used() -> None:
    async with bench() as b:
        request = request_of(6)
        fill(b.store, request.block_hashes)
        b.store.stop_after = 3
        assert await b.loaded(request) == [payload(i) for i in range(3)]


async def test_a_store_that_was_restarted_and_forgot_the_lease_costs_the_load_alone() -> None:
    class Forgetful(dict[str, list[tuple[bytes, bytes]]]):
        def __setitem__(self, lease_id: str, leased: list[tuple[bytes, bytes]]) -> None:
            """Gone as soon as it was given."""

    async with bench() as b:
        request = request_of(6)
        fill(b.store, request.block_hashes)
        b.store.leases = Forgetful()
        assert await b.loaded(request) == []
        assert b.outcomes() == {"failed": 1}
        b.store.leases = {}
        assert len(await b.loaded(request)) == 6


async def test_a_slow_store_costs_its_deadline_and_no_more() -> None:
    async with bench(IMPATIENT) as b:
        b.store.answering.clear()
        start = b.chassis.clock.monotonic()
        assert await b.loaded(request_of(6)) == []
        assert 0.08 < b.chassis.clock.monotonic() - start < 10
        assert b.outcomes() == {"late": 1}


async def test_a_store_that_stops_in_the_middle_costs_its_deadline_and_no_more() -> None:
    async with bench(IMPATIENT) as b:
        request = request_of(6)
        fill(b.store, request.block_hashes)
        b.store.sending.clear()
        assert await b.loaded(request) == []
        assert b.outcomes() == {"late": 1}
        await until(lambda: b.store.released == 1)


async def test_a_store_that_fails_is_soon_not_asked() -> None:
    async with bench() as b:
        b.store.broken = True
        for i in range(10):
            assert await b.loaded(request_of(6, salt=i)) == []
        assert len(b.store.matches) == 3
        assert b.outcomes() == {"failed": 3, "breaker": 7}


async def test_the_memory_of_prefixes_is_bounded() -> None:
    budget = replace(LIMITS, load=replace(LIMITS.load, budget_bytes=3 * BLOCK_BYTES))
    async with bench(budget) as b:
        request = request_of(6)
        fill(b.store, request.block_hashes)
        plan = b.transfer.plan(request)
        assert plan is not None
        held = await b.transfer.load(plan)
        assert held is not None
        assert len(held.prefix.blocks) == 3, "as much as there is room for"
        assert b.transfer.plan(request_of(6, salt=5)) is None
        held.release()
        assert b.transfer.plan(request_of(6, salt=5)) is not None


async def test_those_who_want_the_same_chain_share_one_load() -> None:
    async with bench() as b:
        long, short = request_of(8), request_of(5)
        other_tail = [*long.token_ids[: 16 * 4], *prompt_of(33, salt=9)]
        forked = replace(long, token_ids=other_tail, block_hashes=block_hashes(ROOT, other_tail, 16))
        fill(b.store, long.block_hashes)
        b.store.answering.clear()
        loads = [asyncio.create_task(b.loaded(request)) for request in (long, short, forked)]
        await until(lambda: len(b.store.matches) == 1)
        b.store.answering.set()
        assert [len(blocks) for blocks in await asyncio.gather(*loads)] == [8, 5, 4]
        assert (len(b.store.matches), b.store.gets) == (1, 1)


async def test_a_waiter_that_gives_up_does_not_take_the_load_with_it() -> None:
    async with bench() as b:
        request = request_of(4)
        fill(b.store, request.block_hashes)
        b.store.answering.clear()
        first, second = (asyncio.create_task(b.loaded(request)) for _ in range(2))
        await until(lambda: len(b.store.matches) == 1)
        first.cancel()
        b.store.answering.set()
        assert len(await second) == 4


async def test_one_who_comes_as_the_last_waiter_gives_up_starts_anew() -> None:
    async with bench() as b:
        request = request_of(4)
        fill(b.store, request.block_hashes)
        b.store.answering.clear()
        first = asyncio.create_task(b.loaded(request))
        await until(lambda: len(b.store.matches) == 1)
        first.cancel()
        await asyncio.sleep(0)
        second = asyncio.create_task(b.loaded(request))
        b.store.answering.set()
        assert len(await second) == 4
        assert first.cancelled()


async def test_a_load_that_nobody_wants_any_more_gives_its_lease_back() -> None:
    async with bench() as b:
        request = request_of(4)
        fill(b.store, request.block_hashes)
        b.store.sending.clear()
        load = asyncio.create_task(b.loaded(request))
        await until(lambda: b.store.gets == 1)
        load.cancel()
        await until(lambda: b.store.released == 1)


async def test_no_more_loads_at_once_than_allowed_however_they_were_planned() -> None:
    async with bench() as b:
        requests = [request_of(4, salt=salt) for salt in range(1, 8)]
        plans = [plan for request in requests if (plan := b.transfer.plan(request))]
        assert len(plans) == 7, "all are planned before the first takes off"
        b.store.answering.clear()
        loads = [asyncio.create_task(b.transfer.load(plan)) for plan in plans]
        await until(lambda: len(b.store.matches) == 4)
        assert await asyncio.gather(*loads[4:]) == [None] * 3
        b.store.answering.set()
        await asyncio.gather(*loads)
        assert b.outcomes() == {"miss": 4, "no_room": 3}


async def test_a_prompt_longer_than_a_match_may_be_is_matched_as_far_as_that() -> None:
    engine = FakeEngine()
    engine.cached_prefix_blocks = len  # type: ignore[method-assign,assignment]
    async with bench(engine=engine) as b:
        hashes = [i.to_bytes(16, "little") for i in range(70_000)]
        request = GenerationRequest(1, [3] * (16 * 70_000 + 1), 8, hashes, cache_scope=ROOT)
        assert b.transfer.plan(request) is None, "the engine holds all that could be asked for"
        engine.cached_prefix_blocks = lambda block_hashes: 0  # type: ignore[method-assign]
        plan = b.transfer.plan(request)
        assert plan is not None
        assert len(plan.block_hashes) == 65_536


# ── offering ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def full_blocks(request: GenerationRequest) -> list[FullBlock]:
    scope, hashes = request.cache_scope, request.block_hashes
    return [FullBlock(scope, h, hashes[i - 1] if i else b"", payload(i)) for i, h in enumerate(hashes)]


async def test_full_blocks_reach_the_store_with_their_parents() -> None:
    async with bench() as b:
        request = request_of(4)
        await asyncio.to_thread(b.transfer.offer, full_blocks(request))
        await until(lambda: len(b.store.blocks) == 4)
        assert set(b.store.blocks) == {(NAMESPACE, h) for h in request.block_hashes}
        assert b.store.parents[request.block_hashes[0]] == b""
        assert b.store.parents[request.block_hashes[3]] == request.block_hashes[2]
        assert await b.loaded(request) == [payload(i) for i in range(4)]


async def test_each_scope_goes_to_its_own_namespace() -> None:
    async with bench() as b:
        salted = scope_root(HashScope("tiny", "r1", "t1", tenant_salt="acme"))
        ours, theirs = request_of(2), request_of(2, scope=salted)
        b.transfer.offer([*full_blocks(ours), *full_blocks(theirs)])
        await until(lambda: len(b.store.blocks) == 4)
        fingerprint = namespace_fingerprint(salted, kv_dtype="uint8", kv_layout="fake", block_size=16)
        assert set(b.store.blocks) == {
            *((NAMESPACE, h) for h in ours.block_hashes),
            *((fingerprint, h) for h in theirs.block_hashes),
        }


async def test_what_is_known_to_be_stored_is_not_sent_again() -> None:
    async with bench() as b:
        request = request_of(4)
        fill(b.store, request.block_hashes[:3])
        await b.loaded(request)
        b.transfer.offer(full_blocks(request))
        await until(lambda: len(b.store.blocks) == 4)
        b.transfer.offer(full_blocks(request))
        await until(lambda: b.outcomes("kv_offered_blocks").get("known") == 7)
        assert b.outcomes("kv_offered_blocks") == {"known": 7, "stored": 1, "present": 0, "corrupt": 0, "refused": 0}
        assert b.store.puts == 1


async def test_what_the_store_has_lost_is_sent_again() -> None:
    async with bench() as b:
        request = request_of(4)
        b.transfer.offer(full_blocks(request))
        await until(lambda: len(b.store.blocks) == 4)
        b.store.blocks.clear()
        assert await b.loaded(request) == []
        b.transfer.offer(full_blocks(request))
        await until(lambda: len(b.store.blocks) == 4)


async def test_while_the_queue_is_full_or_the_store_away_nothing_more_is_wanted() -> None:
    small = replace(LIMITS, put=replace(LIMITS.put, queue_bytes=3 * BLOCK_BYTES))
    async with bench(small) as b:
        request = request_of(4)
        assert b.transfer.wants(request.block_hashes[3])
        b.transfer.offer(full_blocks(request)[:3])
        assert not b.transfer.wants(request.block_hashes[3])
        await until(lambda: len(b.store.blocks) == 3)
        assert b.transfer.wants(request.block_hashes[3])
        assert not b.transfer.wants(request.block_hashes[0]), "it is there"
        b.store.broken = True
        for i in range(3):
            b.transfer.offer(full_blocks(request_of(1, salt=i + 1)))
            await until(lambda i=i: b.outcomes("kv_offered_blocks").get("failed") == i + 1)  # type: ignore[misc]
        assert not b.transfer.wants(request.block_hashes[3])
        assert b.outcomes("kv_offered_blocks")["breaker"] == 1


async def test_a_queue_that_is_full_drops_and_counts() -> None:
    small = replace(LIMITS, put=replace(LIMITS.put, queue_bytes=3 * BLOCK_BYTES))
    async with bench(small) as b:
        request = request_of(8)
        b.transfer.offer(full_blocks(request))
        await until(lambda: len(b.store.blocks) == 3)
        assert b.outcomes("kv_offered_blocks")["queue_full"] == 5


async def test_large_blocks_go_in_pieces() -> None:
    large = replace(LIMITS, put=replace(LIMITS.put, queue_bytes=1 << 24))
    async with bench(large) as b:
        request = request_of(1)
        body = bytes(range(256)) * (5 * 4096)  # 5 MiB
        b.transfer.offer([FullBlock(ROOT, request.block_hashes[0], b"", body)])
        await until(lambda: b.store.blocks.get((NAMESPACE, request.block_hashes[0])) == body)


async def test_a_store_that_refuses_puts_is_soon_left_alone() -> None:
    async with bench() as b:
        b.store.broken = True
        for i in range(5):
            request = request_of(1, salt=i)
            b.transfer.offer(full_blocks(request))
            await until(lambda i=i: sum(b.outcomes("kv_offered_blocks").values()) == i + 1)  # type: ignore[misc]
        assert b.outcomes("kv_offered_blocks") == {"failed": 3, "breaker": 2}


async def test_more_blocks_than_a_put_may_carry_go_in_several() -> None:
    async with bench() as b:
        hashes = [i.to_bytes(16, "little") for i in range(5000)]
        b.transfer.offer([FullBlock(ROOT, block_hash, b"", payload(0)) for block_hash in hashes])
        await until(lambda: len(b.store.blocks) == 5000)
        assert b.store.puts == 2


async def test_a_bug_in_a_put_costs_its_blocks_and_not_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    async with bench() as b:
        with monkeypatch.context() as patch:
            patch.setattr("weir_executor.kv_transfer.arena_transport.ArenaTransport.put", broken)
            b.transfer.offer(full_blocks(request_of(2)))
            await until(lambda: b.outcomes("kv_offered_blocks") == {"failed": 2})
        b.transfer.offer(full_blocks(request_of(2)))
        await until(lambda: len(b.store.blocks) == 2)


# ── in the service ────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def executor(store: StoreDouble, engine: Engine | None = None, **settings: Any) -> AsyncIterator[Any]:
    chassis = new_chassis("executor")
    async with serve_store(store) as channel:
        known = ExecutorSettings(
            model_dir=Path("unused"), model="tiny", kvstore_address="store", kvstore_min_blocks=2, **settings
        )
        engine = engine or FakeEngine(FakeEngineConfig(check_integrity=True, emit_full_blocks=True))
        async with (
            serving(engine, FILES, known, replace(chassis, connect=lambda _: channel)) as servicers,
            chassis.background,
            serve_in_memory(*servicers.registrations) as door,
        ):
            yield connect(door)
    assert_no_leases(chassis.leases)
    assert not store.leases


async def test_one_executor_stores_and_the_next_one_loads() -> None:
    store, prompt = make_store(), prompt_of(16 * 4 + 1)
    for turn in range(2):
        async with executor(store) as stub, calling(stub) as caller:
            await caller.submit(1, prompt, share=True, max_tokens=40)
            await caller.until_told(1)
            end = caller.ended[1]
            assert (end.engine_cached_tokens, end.store_cached_tokens) == (0, 64 * turn)
            assert end.usage.cached_prompt_tokens == 64 * turn
            await until(lambda: len(store.blocks) == 6)
    assert store.released == 1


async def test_a_hanging_store_does_not_keep_a_request_from_its_answer() -> None:
    store = make_store()
    store.answering.clear()
    async with executor(store, kvstore_deadline_seconds=0.05) as stub, calling(stub) as caller:
        await caller.submit(1, prompt_of(65), share=True)
        await caller.until_told(1)
        assert len(caller.tokens[1, 0]) == 8
        store.answering.set()


@pytest.mark.parametrize("output_index", [None, 1])
async def test_a_request_can_be_aborted_while_its_prefix_loads(output_index: int | None) -> None:
    store = make_store()
    store.answering.clear()
    async with executor(store, kvstore_deadline_seconds=0.3) as stub, calling(stub) as caller:
        two = SamplingParameters(n=2, seed=1)
        await caller.submit(1, prompt_of(65), share=True, sampling=two, max_tokens=9)
        await until(lambda: len(store.matches) == 1)
        await caller.abort(1, output_index)
        await caller.until_told(1)
        assert caller.ended[1].usage.completion_tokens == (0 if output_index is None else 9)
        assert caller.ended[1].usage.prompt_tokens == 65
        await until_idle(stub)
        store.answering.set()


async def test_a_deadline_passes_while_the_prefix_loads() -> None:
    store = make_store()
    store.answering.clear()
    async with executor(store, kvstore_deadline_seconds=5.0) as stub, calling(stub) as caller:
        sent = submit(caller.info, 1, prompt_of(65), share=True)
        sent.time_left.FromMilliseconds(20)
        await caller.send(sent)
        await caller.until_told(1)
        assert 1 in caller.failed
        await until_idle(stub)
        store.answering.set()


async def test_cancelling_the_stream_ends_the_load() -> None:
    store = make_store()
    store.answering.clear()
    async with executor(store, kvstore_deadline_seconds=5.0) as stub, calling(stub) as caller:
        await caller.submit(1, prompt_of(65), share=True)
        await until(lambda: len(store.matches) == 1)
        caller.call.cancel()
        load = await until_idle(stub)
        assert load.live_requests == 0
        store.answering.set()


async def test_a_chain_that_begins_in_generated_tokens_is_stored_too() -> None:
    store = make_store()
    async with executor(store) as stub, calling(stub) as caller:
        await caller.submit(1, prompt_of(10), max_tokens=40)
        await caller.until_told(1)
        await until(lambda: len(store.blocks) == 3)
        hashes = block_hashes(ROOT, [*prompt_of(10), *caller.tokens[1, 0]], 16)
        assert set(store.blocks) == {(NAMESPACE, block_hash) for block_hash in hashes}


async def test_a_put_says_whose_its_blocks_are_and_what_they_took_to_compute() -> None:
    store = make_store()
    async with executor(store) as stub, calling(stub) as caller:
        for handle, tenant in ((1, "acme"), (2, "zoo")):
            await caller.submit(handle, prompt_of(65, handle), share=True, tenant=tenant)
            await caller.until_told(handle)
            await until(lambda handle=handle: len(store.blocks) == 4 * handle)  # type: ignore[misc]
    assert [(begin.tenant, begin.block_size) for begin in store.begins] == [("acme", 16), ("zoo", 16)]
    assert all(begin.prefill_seconds_per_block > 0 for begin in store.begins)


async def test_what_the_store_is_known_to_hold_is_not_even_copied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    store, prompt = make_store(), prompt_of(16 * 6 + 1)
    fill(store, block_hashes(ROOT, prompt, 16)[:4])
    store.stop_after = 0  # what is matched does not come, so that it is computed here
    engine, copied = FakeEngine(FakeEngineConfig(emit_full_blocks=True)), list[int]()
    read = engine._fake.read_blocks

    def read_blocks(block_ids: Sequence[int]) -> Sequence[bytes]:
        copied.extend(block_ids)
        return read(block_ids)

    monkeypatch.setattr(engine._fake, "read_blocks", read_blocks)
    async with executor(store, engine) as stub, calling(stub) as caller:
        await caller.submit(1, prompt, share=True, max_tokens=2)
        await caller.until_told(1)
        assert caller.ended[1].usage.cached_prompt_tokens == 0
        await until(lambda: len(store.blocks) == 6)
    assert len(copied) == 2


async def test_a_request_keeps_its_place_in_line_while_its_prefix_loads() -> None:
    store = make_store()
    store.answering.clear()
    engine = FakeEngine(FakeEngineConfig(emit_full_blocks=True, max_num_seqs=1))
    async with executor(store, engine, kvstore_deadline_seconds=5.0) as stub, calling(stub) as caller:
        engine.hang()
        await caller.submit(1, prompt_of(10), max_tokens=2)
        await caller.submit(2, prompt_of(65), share=True, max_tokens=2)
        await until(lambda: len(store.matches) == 1)
        await caller.submit(3, prompt_of(12), max_tokens=2)
        await until(lambda: engine.load().waiting_requests >= 1)
        store.answering.set()
        await until(lambda: engine.load().waiting_requests >= 2)
        engine.resume()
        await caller.until_told(1, 2, 3)
        assert list(caller.ended) == [1, 2, 3]


async def test_no_prefix_is_loaded_for_a_request_that_has_no_place_to_wait() -> None:
    store = make_store()
    store.answering.clear()
    async with executor(store, max_waiting=2, kvstore_deadline_seconds=5.0) as stub, calling(stub) as caller:
        for handle in (1, 2, 3):
            await caller.submit(handle, prompt_of(65, handle), share=True)
        await caller.until_told(3)
        assert reason_name(caller.failed[3].reason) == "OVERLOADED"
        assert caller.failed[3].retry_after
        await until(lambda: len(store.matches) == 2)
        store.answering.set()
        await caller.until_told(1, 2)
        assert set(caller.ended) == {1, 2}
        assert len(store.matches) == 2


async def test_a_request_that_is_refused_after_its_load_gives_its_memory_back() -> None:
    store, refusals = make_store(), [Overloaded("full"), RuntimeError("secret words of a prompt")]

    def refuse(self: FakeEngine, request: GenerationRequest) -> None:
        assert request.stored_prefix is not None
        raise refusals.pop(0)

    fill(store, block_hashes(ROOT, prompt_of(65), 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeEngine, "submit", refuse)
        async with executor(store) as stub, calling(stub) as caller:
            for handle, reason in ((1, "OVERLOADED"), (2, "INTERNAL")):
                await caller.submit(handle, prompt_of(65), share=True)
                await caller.until_told(handle)
                assert reason_name(caller.failed[handle].reason) == reason
                assert "secret" not in caller.failed[handle].message
            load = await stub.GetLoad(pb.GetLoadRequest())
            assert load.live_requests == 0
            await until(lambda: store.released == 2)


async def test_an_engine_that_dies_while_a_prefix_loads_fails_the_request() -> None:
    store = make_store()
    store.answering.clear()
    engine = FakeEngine(FakeEngineConfig(emit_full_blocks=True))
    async with executor(store, engine, kvstore_deadline_seconds=5.0) as stub, calling(stub) as caller:
        await caller.submit(1, prompt_of(65), share=True)
        await until(lambda: len(store.matches) == 1)
        engine.die()
        await caller.submit(2, prompt_of(3))
        await caller.until_told(2)
        store.answering.set()
        await caller.until_told(1)
        assert {reason_name(error.reason) for error in caller.failed.values()} == {"WORKER_LOST"}
