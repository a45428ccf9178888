"""The contract, kept by the real store: over a real connection and in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from contract import kvstore_contract
from contract.kvstore_contract import MIB, Check
from weir_chassis.server import Chassis, new_chassis
from weir_chassis.testing import assert_no_leases, serve_in_memory, serve_on_loopback
from weir_kvstore.service import build
from weir_kvstore.settings import KvStoreSettings

if TYPE_CHECKING:
    from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceAsyncStub as Stub

PLACES = {"loopback": serve_on_loopback, "memory": serve_in_memory}
SETTINGS = KvStoreSettings(capacity_bytes=8 * MIB, max_staged_bytes=8 * MIB, sweep_seconds=0.05)


@asynccontextmanager
async def serve(place: str, chassis: Chassis, settings: KvStoreSettings = SETTINGS) -> AsyncIterator[Stub]:
    async with (
        build(settings, chassis) as servicers,
        chassis.background,
        PLACES[place](*servicers.registrations) as channel,
    ):
        yield kvstore_contract.connect(channel)


@pytest.mark.parametrize("check", kvstore_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("place", PLACES)
async def test_contract(place: str, check: Check) -> None:
    chassis = new_chassis("kvstore")
    async with serve(place, chassis) as stub:
        await check(stub)
        for lease in chassis.leases.live():
            assert lease.kind == "read", "puts and pins end with their calls"
            lease.release()
    assert_no_leases(chassis.leases)
    assert chassis.background.failure is None
