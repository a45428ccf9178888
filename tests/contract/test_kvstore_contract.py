"""The contract, kept by the real store: over a real connection and in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from contract import kvstore_contract
from contract.kvstore_contract import MIB, Check
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
SETTINGS = KvStoreSettings(capacity_bytes=8 * MIB, max_staged_bytes=8 * MIB, sweep_seconds=0.05)


@asynccontextmanager
async def serve(place: str, chassis: Chassis, client: str = "protobuf") -> AsyncIterator[Stub]:
    async with (
        build(SETTINGS, chassis) as servicers,
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
}


@pytest.mark.parametrize("check", kvstore_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize(
    ("place", "client"), [("loopback", "protobuf"), ("memory", "protobuf"), ("loopback", "chunks")]
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
