"""The contract, kept by the real store: over a real connection and in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from contract import kvstore_contract
from contract.kvstore_contract import MIB, NAMESPACE, Check, chain, fails, match, put
from contract.reference_client import ReferenceStub, mapped
from unit.executor.store_double import StoreDouble
from weir.kvstore.v1 import kvstore_pb2 as pb
from weir.kvstore.v1.block_chunk import parse_put
from weir.kvstore.v1.block_chunk_grpc import get_blocks, put_blocks
from weir.kvstore.v1.kvstore_pb2_grpc import add_KvStoreServiceServicer_to_server
from weir_chassis.server import Chassis, Registration, new_chassis
from weir_chassis.testing import assert_no_leases, serve_in_memory, serve_on_loopback
from weir_kvstore.service import build
from weir_kvstore.settings import KvStoreSettings

if TYPE_CHECKING:
    from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceAsyncStub as Stub

PLACES = {"loopback": serve_on_loopback, "memory": serve_in_memory}
_NAME = pb.DESCRIPTOR.services_by_name["KvStoreService"].full_name
# A reservation whose client left before it had its id lapses like a silent put: sooner than the suite's patience ends.
SETTINGS = KvStoreSettings(capacity_bytes=8 * MIB, max_staged_bytes=8 * MIB, sweep_seconds=0.05, put_idle_seconds=2.0)


@asynccontextmanager
async def serve(
    place: str, chassis: Chassis, client: str = "protobuf", settings: KvStoreSettings = SETTINGS
) -> AsyncIterator[Any]:
    async with (
        build(settings, chassis) as servicers,
        chassis.background,
        PLACES[place](*servicers.registrations) as channel,
    ):
        yield CLIENTS[client](channel)


class ChunkStub:
    """A client that lets chunks pass protobuf by."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = kvstore_contract.connect(channel)
        self.GetBlocks, self._put_blocks = get_blocks(channel), put_blocks(channel)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stub, name)

    def PutBlocks(self, requests: Any = None, **options: Any) -> Any:
        if isinstance(requests, Iterable):
            requests = [parse_put(request.SerializeToString()) for request in requests]
        return self._put_blocks(requests, **options)


CLIENTS: Mapping[str, Callable[[grpc.aio.Channel], Any]] = {
    "protobuf": kvstore_contract.connect,
    "chunks": ChunkStub,
    "reference": ReferenceStub,
}


@pytest.mark.parametrize("check", kvstore_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize(
    ("place", "client"),
    [("loopback", "protobuf"), ("memory", "protobuf"), ("loopback", "chunks"), ("loopback", "reference")],
)
async def test_contract(place: str, client: str, check: Check) -> None:
    chassis = new_chassis("kvstore")
    async with serve(place, chassis, client) as stub:
        await check(stub)
        for lease in chassis.leases.live():
            assert lease.kind == "read", "puts and pins end with their calls"
            lease.release()
    assert_no_leases(chassis.leases)
    assert chassis.background.failure is None


@pytest.mark.parametrize("place", PLACES)
async def test_a_client_of_chunks_and_a_server_that_knows_none(place: str) -> None:
    store, blocks = StoreDouble(), kvstore_contract.chain(3, size_bytes=3 * MIB)
    async with PLACES[place](Registration(add_KvStoreServiceServicer_to_server, store, _NAME)) as channel:
        stub = cast("Stub", ChunkStub(channel))
        assert await kvstore_contract.put(stub, blocks) == (3, 0, 0, 0)
        lease_id = (await kvstore_contract.match(stub, blocks)).lease_id
        assert await kvstore_contract.get(stub, lease_id) == kvstore_contract.payloads(blocks)


async def test_the_suite_does_go_by_reference() -> None:
    async with serve("loopback", new_chassis("kvstore"), "reference") as stub:
        await put(stub, chain(2))
        await kvstore_contract.get(stub, (await match(stub, chain(2))).lease_id)
        assert (stub.puts, stub.gets) == (1, 1)


async def test_a_store_that_shares_no_memory_says_so() -> None:
    settings = SETTINGS.model_copy(update={"arena_dir": None})
    async with serve("memory", new_chassis("kvstore"), settings=settings) as stub:
        await put(stub, chain(1))
        lease_id = (await match(stub, chain(1))).lease_id
        await fails(stub.AttachArena(pb.AttachArenaRequest()), "UNSUPPORTED", "shares no arena")
        await fails(stub.ReserveBlocks(reservation("a")), "UNSUPPORTED")
        by_reference = pb.GetBlocksRequest(lease_id=lease_id, arena_id="a")
        await fails(stub.GetBlocks(by_reference).read(), "UNSUPPORTED")
        await fails(stub.CommitBlocks(pb.CommitBlocksRequest(reservation_id="r")), "NOT_FOUND", "reservation")


async def test_requests_by_reference_that_cannot_be() -> None:
    async with serve("memory", new_chassis("kvstore")) as stub:
        arena_id = (await stub.AttachArena(pb.AttachArenaRequest())).arena_id
        await put(stub, chain(1))
        lease_id = (await match(stub, chain(1))).lease_id
        await fails(stub.ReserveBlocks(reservation("other")), "NOT_FOUND", "arena 'other'")
        other = pb.GetBlocksRequest(lease_id=lease_id, arena_id="other")
        await fails(stub.GetBlocks(other).read(), "NOT_FOUND", "arena")
        for text, wrong in (
            ("namespace", {"begin": pb.PutBegin(namespace=b"short")}),
            ("begin.tenant", {"begin": pb.PutBegin(namespace=NAMESPACE, tenant="x" * 129)}),
            ("block_hashes: 15", {"block_hashes": bytes(15)}),
            ("block_hashes: 4097 blocks", {"block_hashes": bytes(16 * 4097)}),
            ("parent_block_hashes: 0 bytes for 1", {"parent_block_hashes": b""}),
            ("payload_bytes: 0 for 1", {"payload_bytes": []}),
            ("checksums: 2 for 1", {"checksums": [1, 2]}),
            ("payload_bytes: 0,", {"payload_bytes": [0]}),
            ("payload_bytes: 67108865", {"payload_bytes": [64 * MIB + 1]}),
        ):
            await fails(stub.ReserveBlocks(reservation(arena_id, **wrong)), "INVALID_ARGUMENT", text)
        for name in ("", "x" * 65):
            await fails(stub.CommitBlocks(pb.CommitBlocksRequest(reservation_id=name)), "INVALID_ARGUMENT")
        report = pb.ReportCorruptRequest(lease_id=lease_id, block_hash=bytes(16))
        await fails(stub.ReportCorrupt(report), "INVALID_ARGUMENT", "no leased block")
        await stub.CancelReservation(pb.CancelReservationRequest(reservation_id="unknown"))
        assert (await kvstore_contract.stats(stub)).open_puts == 0


async def test_a_reservation_is_an_open_put_that_nobody_sees() -> None:
    async with serve("memory", new_chassis("kvstore")) as stub:
        arena_id = (await stub.AttachArena(pb.AttachArenaRequest())).arena_id
        reserved = await stub.ReserveBlocks(reservation(arena_id))
        found = await kvstore_contract.stats(stub)
        assert (found.open_puts, found.tiers[0].bytes) == (1, 1000)
        assert await kvstore_contract.held(stub, chain(1)) == 0
        await stub.CancelReservation(pb.CancelReservationRequest(reservation_id=reserved.reservation_id))
        assert await kvstore_contract.nothing_is_left(stub)


async def test_a_report_of_what_is_wrong_quarantines_it() -> None:
    async with serve("memory", new_chassis("kvstore")) as stub:
        await put(stub, chain(2))
        lease_id = (await match(stub, chain(2))).lease_id
        found = await stub.AttachArena(pb.AttachArenaRequest())
        report = pb.ReportCorruptRequest(lease_id=lease_id, block_hash=chain(2)[1].block_hash)
        assert not (await stub.ReportCorrupt(report)).quarantined
        mapped(found)[1024:1030] = b"spoilt"  # where the second block is
        assert (await stub.ReportCorrupt(report)).quarantined
        assert await kvstore_contract.held(stub, chain(2)) == 1
        by_reference = pb.GetBlocksRequest(lease_id=lease_id, arena_id=found.arena_id)
        answers = [answer async for answer in stub.GetBlocks(by_reference)]
        assert [len(answer.placed.offsets) for answer in answers] == [1]


def reservation(arena_id: str, **changes: Any) -> pb.ReserveBlocksRequest:
    (block,) = chain(1)
    sound: dict[str, Any] = {
        "begin": pb.PutBegin(namespace=NAMESPACE),
        "block_hashes": block.block_hash,
        "parent_block_hashes": bytes(16),
        "payload_bytes": [1000],
        "checksums": [block.checksum],
    }
    return pb.ReserveBlocksRequest(arena_id=arena_id, **{**sound, **changes})
