"""By reference where that can be, by value where it cannot, and the same blocks or fewer whatever a store does.

What holds for both ways is in test_kv_transfer.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from unit.executor.copiers import COPIERS
from unit.executor.store_double import SharingDouble, StoreDouble, serve_store
from weir.kvstore.v1 import kvstore_pb2 as kv
from weir_chassis.clock import SystemClock
from weir_chassis.errors import DataCorrupt, Draining, Unsupported
from weir_chassis.testing import VirtualClock
from weir_executor.kv_transfer import arena_transport as module
from weir_executor.kv_transfer.arena_transport import ArenaTransport
from weir_executor.kv_transfer.transport import Put, PutResult
from weir_executor.step_output import FullBlock

NAMESPACE, SIZE = b"n" * 16, 4000
HASHES = [bytes([i]) * 16 for i in range(1, 8)]
PAYLOADS = {block_hash: block_hash * (SIZE // 16) for block_hash in HASHES}
SECONDS = 30.0


@asynccontextmanager
async def connected(store: StoreDouble, clock: Any = None) -> AsyncIterator[ArenaTransport]:
    async with serve_store(store) as channel:
        transport = ArenaTransport(channel, clock or SystemClock(), COPIERS[-1])
        yield transport
        await transport.close()


def fill(store: StoreDouble, hashes: Sequence[bytes] = HASHES) -> None:
    store.blocks.update({(NAMESPACE, block_hash): PAYLOADS[block_hash] for block_hash in hashes})


async def load(transport: ArenaTransport, came: list[bytes] | None = None) -> list[bytes]:
    """The payloads that came; in `came` also those that came before it broke off."""
    came = [] if came is None else came
    match = await transport.match(NAMESPACE, HASHES, skip_blocks=0, block_size=16, timeout=SECONDS)
    assert match.lease_id is not None
    wanted = HASHES[: match.matched_blocks]
    async with aclosing(transport.get(match.lease_id, wanted, block_bytes=SIZE, timeout=SECONDS)) as blocks:
        async for some in blocks:
            came += [bytes(payload) for payload in some]
    await transport.release(match.lease_id, timeout=SECONDS)
    return came


def full_blocks(hashes: Sequence[bytes] = HASHES) -> list[FullBlock]:
    return [FullBlock(b"scope", block_hash, b"", PAYLOADS[block_hash]) for block_hash in hashes]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # of things that have no event to wait for
            await asyncio.sleep(0.002)


async def test_blocks_come_out_of_the_arena_and_go_into_it(tmp_path: Path) -> None:
    store = SharingDouble(tmp_path)
    async with connected(store) as transport:
        assert await transport.put(Put(NAMESPACE, full_blocks()), timeout=SECONDS) == PutResult(7, 0, 0, 0)
        assert await transport.put(Put(NAMESPACE, full_blocks()), timeout=SECONDS) == PutResult(0, 7, 0, 0)
        assert await load(transport) == list(PAYLOADS.values())
    assert (store.attached, store.puts, store.gets) == (1, 2, 1)
    assert {block_hash: store.blocks[NAMESPACE, block_hash] for block_hash in HASHES} == PAYLOADS


async def test_large_loads_come_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_BYTES", 2 * SIZE)
    store = SharingDouble(tmp_path)
    store.places_at_once = 5
    fill(store)
    async with connected(store) as transport:
        assert await load(transport) == list(PAYLOADS.values())


async def test_a_store_that_shares_nothing_is_asked_once_in_a_while() -> None:
    store, clock = StoreDouble(), VirtualClock()
    asked = 0

    async def refuse(request: kv.AttachArenaRequest, context: Any) -> kv.AttachArenaResponse:
        nonlocal asked
        asked += 1
        raise Unsupported("this store shares no arena")

    store.AttachArena = refuse  # type: ignore[method-assign]
    fill(store)
    async with connected(store, clock) as transport:
        for seconds, times in ((0, 1), (29, 1), (2, 2)):
            await clock.advance(seconds)
            assert await load(transport) == list(PAYLOADS.values())
            assert await transport.put(Put(NAMESPACE, full_blocks()), timeout=SECONDS) == PutResult(0, 7, 0, 0)
            assert asked == times


async def test_an_arena_on_another_host_is_as_good_as_none(tmp_path: Path) -> None:
    store = SharingDouble(tmp_path)
    store.path.rename(tmp_path / "elsewhere")
    fill(store)
    with capture_logs() as logs:
        async with connected(store) as transport:
            assert await load(transport) == list(PAYLOADS.values())
    assert [line["event"] for line in logs] == ["no_kvstore_arena"]


async def test_after_a_restart_blocks_come_by_value_once_and_then_through_the_new_arena(tmp_path: Path) -> None:
    store = SharingDouble(tmp_path)
    fill(store)
    async with connected(store) as transport:
        for arena_id, attached in (("a1", 1), ("a2", 1), ("a2", 2), ("a2", 2)):
            if arena_id != store.arena_id:
                store.new_arena(arena_id)
            assert await load(transport) == list(PAYLOADS.values())
            assert store.attached == attached
        store.new_arena("a3")
        store.blocks.clear()
        put = Put(NAMESPACE, full_blocks())
        assert await transport.put(put, timeout=SECONDS) == PutResult(7, 0, 0, 0)
        assert await load(transport) == list(PAYLOADS.values())
        assert store.attached == 3
        assert store.used == len(HASHES) * SIZE


async def test_a_store_that_comes_back_without_an_arena_gives_by_value(tmp_path: Path) -> None:
    store = SharingDouble(tmp_path)
    fill(store)

    async def refuse(request: Any, context: Any) -> Any:
        raise Unsupported("this store shares no arena")

    async with connected(store) as transport:
        assert await load(transport) == list(PAYLOADS.values())
        get = store.GetBlocks

        async def by_value(request: kv.GetBlocksRequest, context: Any) -> AsyncIterator[kv.GetBlocksResponse]:
            if request.arena_id:
                raise Unsupported("this store shares no arena")
            async for answer in get(request, context):
                yield answer

        store.AttachArena = store.ReserveBlocks = refuse  # type: ignore[method-assign]
        store.GetBlocks = by_value  # type: ignore[method-assign]
        assert await transport.put(Put(NAMESPACE, full_blocks()), timeout=SECONDS) == PutResult(0, 7, 0, 0)
        assert await load(transport) == list(PAYLOADS.values())
        assert await load(transport) == list(PAYLOADS.values())


async def test_those_who_come_at_the_same_time_attach_once(tmp_path: Path) -> None:
    store = SharingDouble(tmp_path)
    fill(store)
    async with connected(store) as transport:
        loads = await asyncio.gather(*(load(transport) for _ in range(5)))
        assert loads == [list(PAYLOADS.values())] * 5
    assert store.attached == 1


class AwayDouble(SharingDouble):
    """Calls of the names in `away` do not reach it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.away: set[str] = set()
        fill(self)

    def _reached(self, call: str) -> None:
        if call in self.away:
            raise Draining("away")

    async def AttachArena(self, request: kv.AttachArenaRequest, context: Any) -> kv.AttachArenaResponse:
        self._reached("AttachArena")
        return await super().AttachArena(request, context)

    async def MatchPrefix(self, request: kv.MatchPrefixRequest, context: Any) -> kv.MatchPrefixResponse:
        self._reached("MatchPrefix")
        return await super().MatchPrefix(request, context)

    async def GetBlocks(self, request: kv.GetBlocksRequest, context: Any) -> AsyncIterator[kv.GetBlocksResponse]:
        self._reached("GetBlocks")
        async for answer in super().GetBlocks(request, context):
            yield answer

    async def ReserveBlocks(self, request: kv.ReserveBlocksRequest, context: Any) -> kv.ReserveBlocksResponse:
        self._reached("ReserveBlocks")
        return await super().ReserveBlocks(request, context)


@pytest.mark.parametrize("call", ["MatchPrefix", "GetBlocks", "ReserveBlocks"])
async def test_the_arena_of_a_store_that_cannot_be_reached_is_let_go_of(tmp_path: Path, call: str) -> None:
    store = AwayDouble(tmp_path)
    async with connected(store) as transport:
        assert await load(transport) == list(PAYLOADS.values())
        store.away = {call}
        with pytest.raises(grpc.RpcError, match="away"):
            await load(transport)
            await transport.put(Put(NAMESPACE, full_blocks()), timeout=SECONDS)
        assert transport._attaching._arena is None
        store.away = set()
        assert await load(transport) == list(PAYLOADS.values())
        assert store.attached == 2


async def test_a_store_that_was_away_when_it_was_asked_is_asked_again_at_the_next_use(tmp_path: Path) -> None:
    store = AwayDouble(tmp_path)
    store.away = {"AttachArena"}
    async with connected(store, VirtualClock()) as transport:
        assert await load(transport) == list(PAYLOADS.values())
        assert store.attached == 0
        store.away = set()
        assert await load(transport) == list(PAYLOADS.values())
        assert store.attached == 1


async def test_a_store_that_does_not_say_where_its_arena_is_costs_half_a_deadline_once(tmp_path: Path) -> None:
    store, asked = SharingDouble(tmp_path), 0

    async def hang(request: kv.AttachArenaRequest, context: Any) -> kv.AttachArenaResponse:
        nonlocal asked
        asked += 1
        await asyncio.sleep(60)
        raise AssertionError

    store.AttachArena = hang  # type: ignore[method-assign]
    fill(store)
    async with connected(store) as transport:
        match = await transport.match(NAMESPACE, HASHES, skip_blocks=0, block_size=16, timeout=SECONDS)
        assert match.lease_id is not None
        came = []
        async for some in transport.get(match.lease_id, HASHES, block_bytes=SIZE, timeout=0.2):
            came += [bytes(payload) for payload in some]
        assert came == list(PAYLOADS.values())
        await transport.release(match.lease_id, timeout=SECONDS)
        assert await load(transport) == list(PAYLOADS.values())
    assert asked == 1


async def test_a_corrupt_block_is_reported_and_what_came_before_it_is_right(tmp_path: Path) -> None:
    store = SharingDouble(tmp_path)
    fill(store)
    store.blocks[NAMESPACE, HASHES[2]] = bytes(SIZE - 1) + b"x"
    store.corrupt = {HASHES[2]}
    came: list[bytes] = []
    async with connected(store) as transport:
        with pytest.raises(DataCorrupt):
            await load(transport, came)
        assert came == list(PAYLOADS.values())[:2]
        await until(lambda: store.reports == [HASHES[2]])


async def test_after_its_lease_has_lapsed_a_load_ends_and_blames_nobody(tmp_path: Path) -> None:
    """The store may have put something else there: what does not verify then is no fault of its."""
    store, clock = SharingDouble(tmp_path), VirtualClock()
    store.places_at_once = 2
    fill(store)
    store.blocks[NAMESPACE, HASHES[2]] = bytes(SIZE - 1) + b"x"
    store.corrupt = {HASHES[2]}
    async with connected(store, clock) as transport:
        match = await transport.match(NAMESPACE, HASHES, skip_blocks=0, block_size=16, timeout=60)
        assert match.lease_id is not None
        came = []
        async for some in transport.get(match.lease_id, HASHES, block_bytes=SIZE, timeout=60):
            came += [bytes(payload) for payload in some]
            await clock.advance(10)
        assert came == list(PAYLOADS.values())[:2]
    assert store.reports == []


def _columns(**changes: Any) -> kv.PlacedBlocks:
    sound: dict[str, Any] = {
        "block_hashes": HASHES[0],
        "offsets": [0],
        "payload_bytes": [SIZE],
        "checksums": [0],
    }
    return kv.PlacedBlocks(**{**sound, **changes})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"block_hashes": HASHES[1]}, "not next"),
        ({"block_hashes": HASHES[0][:15]}, "columns"),
        ({"offsets": []}, "columns"),
        ({"checksums": [0, 0]}, "columns"),
        ({"payload_bytes": [SIZE + 1]}, "another size"),
        ({"offsets": [2**64 - 1]}, "named 4000 bytes"),
        ({"offsets": [(64 << 20) - SIZE + 1]}, "named 4000 bytes"),
        ({}, "does not match its checksum"),
    ],
)
async def test_places_that_cannot_be_are_a_miss(tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    store = SharingDouble(tmp_path)
    fill(store)

    async def lie(request: kv.GetBlocksRequest, context: Any) -> AsyncIterator[kv.GetBlocksResponse]:
        yield kv.GetBlocksResponse(placed=_columns(**wrong))

    store.GetBlocks = lie  # type: ignore[method-assign]
    async with connected(store) as transport:
        with pytest.raises(DataCorrupt, match=says):
            await load(transport)


async def test_places_and_chunks_may_come_mixed(tmp_path: Path) -> None:
    """The store brings into its arena what there is room for."""
    store = SharingDouble(tmp_path)
    store.places_at_once = 1
    fill(store)
    places = store.GetBlocks

    async def mixed(request: kv.GetBlocksRequest, context: Any) -> AsyncIterator[kv.GetBlocksResponse]:
        by_value = StoreDouble.GetBlocks(store, request, context)
        async for index, (place, chunk) in _counted(places(request, context), by_value):
            yield chunk if index % 3 == 1 else place

    store.GetBlocks = mixed  # type: ignore[method-assign]
    async with connected(store) as transport:
        assert await load(transport) == list(PAYLOADS.values())


async def _counted(
    left: AsyncIterator[kv.GetBlocksResponse], right: AsyncIterator[kv.GetBlocksResponse]
) -> AsyncIterator[tuple[int, tuple[kv.GetBlocksResponse, kv.GetBlocksResponse]]]:
    index = 0
    async for one in left:
        yield index, (one, await anext(right))
        index += 1


async def test_a_put_that_is_cancelled_is_given_back_when_nothing_writes_any_more(tmp_path: Path) -> None:
    store = SharingDouble(tmp_path)
    store.sending.clear()
    async with connected(store) as transport:
        putting = asyncio.create_task(transport.put(Put(NAMESPACE, full_blocks()), timeout=SECONDS))
        await until(lambda: bool(store.reservations))
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)
        await until(lambda: store.cancelled == 1)
    assert store.blocks == {}


async def test_a_commit_that_comes_too_late_is_given_back(tmp_path: Path) -> None:
    store = SharingDouble(tmp_path)
    async with connected(store) as transport:
        await transport.put(Put(NAMESPACE, full_blocks(HASHES[:1])), timeout=SECONDS)  # it has the arena by now
        store.sending.clear()
        with pytest.raises(grpc.RpcError):
            await transport.put(Put(NAMESPACE, full_blocks(HASHES[1:])), timeout=0.5)
        await until(lambda: store.cancelled == 1)


async def test_what_is_present_or_refused_is_not_written(tmp_path: Path) -> None:
    store = SharingDouble(tmp_path)
    fill(store, HASHES[:2])
    reserve = store.ReserveBlocks

    async def refusing(request: kv.ReserveBlocksRequest, context: Any) -> kv.ReserveBlocksResponse:
        response = await reserve(request, context)
        response.places[2].refused = True
        namespace, reserved, present = store.reservations[response.reservation_id]
        store.reservations[response.reservation_id] = (namespace, reserved[1:], present)
        return response

    store.ReserveBlocks = refusing  # type: ignore[method-assign]
    async with connected(store) as transport:
        assert await transport.put(Put(NAMESPACE, full_blocks()), timeout=SECONDS) == PutResult(4, 2, 0, 1)
    assert bytes(store.arena[:SIZE]) == bytes(SIZE)


async def test_a_place_outside_the_arena_is_not_written(tmp_path: Path) -> None:
    store = SharingDouble(tmp_path)

    async def lie(request: kv.ReserveBlocksRequest, context: Any) -> kv.ReserveBlocksResponse:
        response = kv.ReserveBlocksResponse(reservation_id="r")
        for _ in HASHES:
            response.places.add(offset=2**40)
        store.reservations["r"] = (NAMESPACE, [], 0)
        return response

    store.ReserveBlocks = lie  # type: ignore[method-assign]
    async with connected(store) as transport:
        with pytest.raises(DataCorrupt):
            await transport.put(Put(NAMESPACE, full_blocks()), timeout=SECONDS)
        await until(lambda: store.cancelled == 1)
