"""What only the whole service does: sweep by itself, count for Prometheus, say when to come back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo

from contract.kvstore_contract import (
    MIB,
    NAMESPACE,
    begin,
    chain,
    connect,
    eventually,
    fails,
    hashes_of,
    match,
    nothing_is_left,
    pieces,
    put,
    ram,
    stats,
    watch,
)
from weir.kvstore.v1 import kvstore_pb2 as pb
from weir_chassis.server import Chassis, new_chassis
from weir_chassis.status import RemoteError, from_rpc_error
from weir_chassis.testing import VirtualClock, assert_no_leases, serve_in_memory, settle
from weir_kvstore.replay.trace import read_trace
from weir_kvstore.service import SERVICE, build
from weir_kvstore.settings import KvStoreSettings

if TYPE_CHECKING:
    from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceAsyncStub as Stub


def virtual_chassis() -> tuple[Chassis, VirtualClock]:
    clock = VirtualClock()
    chassis = replace(new_chassis("kvstore"), clock=clock)
    chassis.leases.clock = clock
    return chassis, clock


@asynccontextmanager
async def serve(chassis: Chassis, **settings: object) -> AsyncIterator[Stub]:
    with_defaults = KvStoreSettings.model_validate({"capacity_bytes": 8 * MIB, **settings})
    async with (
        build(with_defaults, chassis) as servicers,
        chassis.background,
        serve_in_memory(*servicers.registrations) as channel,
    ):
        yield connect(channel)
    assert chassis.background.failure is None


async def test_leases_lapse_when_nobody_calls() -> None:
    chassis, clock = virtual_chassis()
    async with serve(chassis) as stub:
        await put(stub, chain(1))
        lease_id = (await match(stub, chain(1))).lease_id
        await clock.advance(9.9)
        assert (await stats(stub)).live_leases == 1
        await clock.advance(0.6)
        found = await stats(stub)
        assert (found.live_leases, found.expired_leases) == (0, 1)
        await fails(stub.RenewLease(pb.RenewLeaseRequest(lease_id=lease_id)), "LEASE_EXPIRED")
    assert_no_leases(chassis.leases)


async def test_a_renewal_without_a_duration_takes_the_default() -> None:
    chassis, clock = virtual_chassis()
    async with serve(chassis, default_lease_seconds=20) as stub:
        await put(stub, chain(1))
        lease_id = (await match(stub, chain(1), seconds=1)).lease_id
        await stub.RenewLease(pb.RenewLeaseRequest(lease_id=lease_id))
        await clock.advance(19)
        assert (await stats(stub)).live_leases == 1
        await clock.advance(2)
        assert (await stats(stub)).live_leases == 0


@pytest.mark.parametrize("begun", [True, False])
async def test_a_silent_put_is_ended_by_the_sweep(begun: bool) -> None:
    chassis, clock = virtual_chassis()
    async with serve(chassis, put_idle_seconds=3) as stub:
        call = stub.PutBlocks()
        for message in [begin(), *pieces(chain(1)[0])] if begun else []:
            await call.write(message)
        await settle()
        assert ((await stats(stub)).open_puts, (await ram(stub)).bytes) == (1, 1000 if begun else 0)
        await clock.advance(3.5)
        assert await nothing_is_left(stub)
        await fails(call, "DEADLINE_EXCEEDED", "nothing was heard for 3 s")


async def test_refusals_say_when_to_come_back() -> None:
    chassis, _ = virtual_chassis()
    async with serve(chassis, max_live_leases=1, max_open_puts=1) as stub:
        await put(stub, chain(1))
        await match(stub, chain(1), seconds=7)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await match(stub, chain(1))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert _retry_delay(raised.value) == Duration(seconds=7)
        assert (await match(stub, chain(1), seconds=0)).matched_blocks == 1  # looking needs no place
        waiting = stub.PutBlocks()
        await waiting.write(begin())
        await settle()
        await fails(put(stub, chain(1)), "OVERLOADED", "1 puts are open")
        waiting.cancel()
        await eventually(lambda: _no_puts(stub))
        await put(stub, chain(1))


async def _no_puts(stub: Stub) -> bool:
    return (await stats(stub)).open_puts == 0


def _retry_delay(rpc_error: grpc.RpcError) -> Duration:
    error = from_rpc_error(rpc_error)
    assert isinstance(error, RemoteError)
    info = RetryInfo()
    assert any(detail.Unpack(info) for detail in error.status.details)
    return Duration(seconds=info.retry_delay.seconds, nanos=info.retry_delay.nanos)


async def test_leases_are_held_in_the_request_s_name() -> None:
    chassis, _ = virtual_chassis()
    async with serve(chassis) as stub:
        await put(stub, chain(1))
        request = pb.MatchPrefixRequest(namespace=NAMESPACE, block_hashes=chain(1)[0].block_hash)
        await stub.MatchPrefix(request, metadata=(("weir-request-id", "request-7"),))
        assert [lease.owner for lease in chassis.leases.live()] == ["request-7"]


async def test_what_prometheus_sees() -> None:
    chassis, _ = virtual_chassis()
    registry = chassis.metrics.registry
    async with serve(chassis) as stub:
        await put(stub, chain(3))
        await match(stub, chain(4))

        def value(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(f"weir_kvstore_{name}", labels)

        assert value("blocks", tier="ram") == 3
        assert value("bytes", tier="ram") == 3000
        assert value("capacity_bytes", tier="ram") == 8 * MIB
        counted = {name: value(f"{name}_blocks_total", tier="ram") for name in ("stored", "hits", "misses", "corrupt")}
        assert counted == {"stored": 3, "hits": 3, "misses": 1, "corrupt": 0}
        assert value("leases", kind="read") == 1
    assert registry.get_sample_value("weir_kvstore_blocks", {"tier": "ram"}) is None  # gone with the store


def test_the_definition() -> None:
    assert (SERVICE.name, SERVICE.settings, SERVICE.unbounded) == (
        "kvstore",
        KvStoreSettings,
        frozenset({"/weir.kvstore.v1.KvStoreService/WatchKvEvents"}),
    )


async def test_a_watcher_that_falls_behind_is_reset() -> None:
    chassis, _ = virtual_chassis()
    async with serve(chassis, kv_event_log=3) as stub:
        mirror = watch(stub)
        await mirror.read()
        mirror.call.cancel()
        for seed in range(1, 6):
            await put(stub, chain(2, seed=seed))
        again = watch(stub, epoch=mirror.epoch, from_sequence=mirror.sequence + 1)
        await again.read()
        assert (again.resets, len(again.hashes)) == (1, 10)
        again.call.cancel()


async def test_an_eviction_is_told() -> None:
    chassis, _ = virtual_chassis()
    async with serve(chassis, max_blocks=3) as stub:
        mirror = watch(stub)
        old, new = chain(2, seed=1), chain(2, seed=2)
        await put(stub, old)
        await mirror.until_held(hashes_of(old))
        await put(stub, new)
        await mirror.until_held(hashes_of(new))
        await mirror.until_gone(hashes_of(old[1:]))
        assert mirror.hashes == set(hashes_of([old[0], *new]))
        mirror.call.cancel()


async def test_a_drain_ends_the_watches() -> None:
    chassis, _ = virtual_chassis()
    with_defaults = KvStoreSettings(capacity_bytes=8 * MIB)
    async with (
        build(with_defaults, chassis) as servicers,
        chassis.background,
        serve_in_memory(*servicers.registrations) as channel,
    ):
        mirror = watch(connect(channel))
        await mirror.read()
        assert servicers.drain is not None
        await servicers.drain()
        await fails(mirror.call.read(), "DRAINING")


async def test_the_file_of_tiers_holds_as_it_changes(tmp_path: Path) -> None:
    path, chassis = tmp_path / "tiers.toml", new_chassis("kvstore")
    path.write_text('[[tier]]\nkind = "ram"\nmax_bytes = "8MiB"\npolicy = "lru"\nttl = "never"')
    async with serve(chassis, capacity_bytes=1024 * MIB, tiers_file=path, tiers_poll_seconds=0.01) as stub:
        await put(stub, chain(10))
        told = await stats(stub)
        assert (told.tiers[0].policy, told.tiers[0].HasField("ttl"), told.tiers[0].blocks) == ("lru", False, 10)
        assert 'max_bytes = "8MiB"' in told.config

        path.write_text(
            '[[tier]]\nkind = "ram"\nmax_bytes = "5000"\npolicy = "s3fifo"\nttl = "1h"\n[tenants."*"]\nmax_bytes = 3000'
        )
        await eventually(lambda: _policy_is(stub, "s3fifo"))
        told = await stats(stub)
        assert (told.tiers[0].blocks, told.tiers[0].evicted, told.tiers[0].ttl.seconds) == (3, 7, 3600)
        assert (told.tiers[0].capacity_bytes, told.tenants[0].max_bytes, told.config_error) == (5000, 3000, "")
        assert (await match(stub, chain(10))).matched_blocks == 3, "a chain goes from its end"

        path.write_text('[[tier]]\nkind = "ram"\nmax_bytes = "5000"\npolicy = "mru"')
        await eventually(lambda: _is_refused(stub, "tier[0].policy='mru'"))
        assert (await stats(stub)).tiers[0].policy == "s3fifo"
        path.write_text(f'[[tier]]\nkind = "ram"\n[[tier]]\nkind = "disk"\npath = "{tmp_path}"')
        await eventually(lambda: _is_refused(stub, "tier: ram stays in force; ram, disk takes a restart"))
        path.write_text('[[tier]]\nkind = "ram"\nmax_bytes = "16MiB"\npolicy = "lfu"')
        await eventually(lambda: _is_refused(stub, "tier[0].max_bytes"))
        assert [(tier.policy, tier.capacity_bytes) for tier in (await stats(stub)).tiers] == [("lfu", 8 * MIB)]


async def test_what_is_looked_up_is_written_down(tmp_path: Path) -> None:
    path, chassis = tmp_path / "trace.jsonl", new_chassis("kvstore")
    async with serve(chassis, trace_file=path) as stub:
        await put(stub, chain(2))
        await match(stub, chain(3))
    (lookup,) = read_trace(path)
    assert (lookup.namespace, lookup.chain) == (NAMESPACE, [block.block_hash for block in chain(3)])


async def _policy_is(stub: Stub, policy: str) -> bool:
    return (await stats(stub)).tiers[0].policy == policy


async def _is_refused(stub: Stub, reason: str) -> bool:
    return reason in (await stats(stub)).config_error


async def test_each_tiers_blocks_are_told_also_those_found_after_a_restart(tmp_path: Path) -> None:
    blocks = chain(3)
    for incarnation in range(2):
        chassis = new_chassis("kvstore")
        async with serve(chassis, disk_path=tmp_path / "kv", disk_bytes=64 * MIB) as stub:
            mirror = watch(stub)
            if incarnation == 0:
                await put(stub, blocks)
            while {place.block_hash for place in mirror.held if place.tier == "disk"} != set(hashes_of(blocks)):
                await mirror.read()
            told = {place.block_hash: parent for place, parent in mirror.held.items() if place.tier == "disk"}
            assert told == {block.block_hash: block.parent for block in blocks}
            assert any(place.tier == "ram" for place in mirror.held) is (incarnation == 0)
            mirror.call.cancel()
