"""The whole service over the tiers of a file: what a restart finds, and what a new file changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from contract.kvstore_contract import MIB, chain, connect, get, held, match, payloads, put, release, stats
from unit.kvstore.test_service import virtual_chassis
from weir.kvstore.v1 import kvstore_pb2 as pb
from weir_chassis.server import Chassis
from weir_chassis.testing import VirtualClock, assert_no_leases, serve_in_memory
from weir_kvstore.service import build
from weir_kvstore.settings import KvStoreSettings

if TYPE_CHECKING:
    from weir.kvstore.v1.kvstore_pb2_grpc import KvStoreServiceAsyncStub as Stub

_FILE = """
min_prefix_tokens = {min_prefix_tokens}
[[tier]]
kind = "ram"
max_bytes = "{ram}"
policy = "{policy}"
[[tier]]
kind = "disk"
path = "{path}"
max_bytes = "64MiB"
[tenants.acme]
max_bytes = {{ ram = "1MiB" }}
"""


def write(path: Path, *, ram: str = "8MiB", policy: str = "lfu", min_prefix_tokens: int = 0) -> Path:
    text = _FILE.format(ram=ram, policy=policy, path=path / "disk", min_prefix_tokens=min_prefix_tokens)
    (path / "tiers.toml").write_text(text)
    return path / "tiers.toml"


@asynccontextmanager
async def serve(file: Path) -> AsyncIterator[tuple[Stub, VirtualClock]]:
    """Drained at its end, as a server does it."""
    chassis, clock = virtual_chassis()
    settings = KvStoreSettings.model_validate({"tiers_file": file, "arena_dir": ""})
    async with build(settings, chassis) as servicers, chassis.background:
        async with serve_in_memory(*servicers.registrations) as channel:
            yield connect(channel), clock
        assert servicers.drain is not None
        await servicers.drain()
    _is_quiet(chassis)


def _is_quiet(chassis: Chassis) -> None:
    assert chassis.background.failure is None
    assert_no_leases(chassis.leases)


async def test_a_restart_finds_what_was_committed(tmp_path: Path) -> None:
    file, blocks = write(tmp_path), chain(20, 100_000)
    async with serve(file) as (stub, _):
        assert (await put(stub, blocks))[0] == 20
    async with serve(file) as (stub, _):
        found = await match(stub, blocks)
        assert found.matched_blocks == 20
        assert [(each.blocks, each.tier) for each in found.ranges] == [(20, "disk")]
        assert found.leased_bytes == 2_000_000
        assert await get(stub, found.lease_id) == payloads(blocks)
        await release(stub, found.lease_id)
        ram, disk = (await stats(stub)).tiers
        assert (ram.promoted, disk.hits, disk.read_bytes) == (20, 20, 2_000_000)
        again = await match(stub, blocks)
        assert [(each.blocks, each.tier) for each in again.ranges] == [(20, "ram")]
        await release(stub, again.lease_id)


async def test_a_new_file_holds_while_the_store_runs(tmp_path: Path) -> None:
    file, blocks = write(tmp_path), chain(20, 100_000)
    async with serve(file) as (stub, clock):
        await put(stub, blocks)
        write(tmp_path, ram="1MiB", policy="fifo", min_prefix_tokens=100)
        found = await _until(stub, clock, lambda found: found.tiers[0].policy == "fifo")
        assert (found.tiers[0].capacity_bytes, found.config_error) == (MIB, "")
        # What is on its way to the disk leaves when it has come there.
        found = await _until(stub, clock, lambda found: found.tiers[0].bytes <= MIB)
        assert 'policy = "fifo"' in found.config
        assert await held(stub, blocks) == 20, "what had to leave RAM is on disk"
        write(tmp_path, ram="16MiB", policy="lru")
        found = await _until(stub, clock, lambda found: found.tiers[0].policy == "lru")
        assert found.tiers[0].capacity_bytes == 8 * MIB
        assert found.config_error == "tier[0].max_bytes: 8MiB stays in force; 16MiB takes a restart"
        assert 'max_bytes = "8MiB"' in found.config, "what it says is what holds"
        file.write_text("tier = 7")
        found = await _until(stub, clock, lambda found: "restart" not in found.config_error)
        assert "tier" in found.config_error
        assert found.tiers[0].policy == "lru", "a file that is wrong changes nothing"


async def _until(stub: Stub, clock: VirtualClock, wanted: Callable[[pb.GetStatsResponse], bool]) -> pb.GetStatsResponse:
    """Files are looked at, and disks written, on threads: both take a few real moments."""
    for _ in range(500):
        await clock.advance(0.6)
        if wanted(found := await stats(stub)):
            return found
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that")
