"""Two regions with a worker of each kind and a router; a gateway that knows their routers, and a door that knows their
workers themselves.

    gateway ──▶ router eu ──▶ tokenizer, executor, postprocess eu ◀── door
        └─────▶ router us ──▶ tokenizer, executor, postprocess us ◀────┘
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos.services import DEMO_MODEL, Service
from servers import free_ports
from weir.router.v1.fleet_pb2 import WORKER_STATE_SERVING, GetFleetRequest
from weir.router.v1.fleet_pb2_grpc import FleetServiceStub
from weir_chassis.channel import open_channel

REGIONS = ("eu", "us")
# Long enough that a signal which follows a token is there before the next one.
_STEP_SECONDS = 0.04
_TENANTS = """
[tenants.stays]
regions = ["eu"]

[tenants.moves]
regions = ["eu"]
fallback_regions = ["us"]
"""
_ROUTERS = """
[[routers]]
name = "{name}"
address = "{address}"
region = "{name}"
probe_seconds = 0.1
"""
_QUICK = {
    "LOAD_INTERVAL_SECONDS": "0.1",
    "PROBE_TIMEOUT_SECONDS": "0.5",
    "RECONNECT_MIN_SECONDS": "0.05",
    "RECONNECT_MAX_SECONDS": "0.3",
    # For a region that is lost nobody comes in time.
    "CONTINUATION_WAIT_SECONDS": "2",
}
_MODELS = {"MODELS": f"demo={DEMO_MODEL}"}
_EXECUTOR = {
    "ENGINE": "fake",
    "MODEL": "demo",
    "MODEL_DIR": str(DEMO_MODEL),
    "FAKE_STEP_SECONDS": str(_STEP_SECONDS),
}
# What each kind of service counts of clients' requests, by the names of its metrics. Probes are none of them.
_MESSAGES = {
    "tokenizer": ("weir_tokenizer_tokens_total",),
    "executor": ("weir_executor_requests_ended_total", "weir_executor_generated_tokens_total"),
    "postprocess": ("weir_postprocess_tokens_total",),
    "router": ("weir_router_attempts_total", "weir_router_refusals_total"),
}


@dataclass
class Region:
    name: str
    router: Service
    workers: list[Service]

    @property
    def services(self) -> list[Service]:
        return [*self.workers, self.router]

    def kill(self) -> None:
        """As the loss of a region: all of it, at once, without a word."""
        for service in self.services:
            service.signal(signal.SIGKILL)

    async def start(self) -> None:
        for service in self.services:
            if not service.has_ended:
                continue
            service.start()
        await asyncio.gather(*(service.until_serving() for service in self.services))

    async def end(self) -> None:
        """Waits for those that were killed."""
        for service in self.services:
            await service.wait()

    async def messages(self) -> dict[str, float]:
        """What each of its services has had of any client's requests."""
        return {service.name: await _messages(service) for service in self.services}


@dataclass
class World:
    regions: dict[str, Region]
    gateway: Service
    door: Service

    @property
    def services(self) -> list[Service]:
        return [*(service for region in self.regions.values() for service in region.services), self.gateway, self.door]


@asynccontextmanager
async def running_world(directory: Path) -> AsyncIterator[World]:
    """Everybody serves, and knows everybody that there is to know."""
    world = _plan(directory)
    try:
        for service in world.services:
            service.start()
        await asyncio.gather(*(service.until_serving() for service in world.services))
        await until_known(world, 2)
        yield world
    finally:
        for service in world.services:
            service.end()


async def until_known(world: World, regions: int) -> None:
    """Every router knows its own workers; the door, and the gateway by their routers, those of so many regions."""
    for region in world.regions.values():
        if not region.router.has_ended:
            await _until_healthy(region.router, 1)
    await _until_healthy(world.door, regions)
    await _until_routers_serve(world.gateway, regions)


async def _until_healthy(router: Service, count: int) -> None:
    """So many of each kind: a request needs all three."""
    names = [f'weir_router_healthy_workers{{kind="{kind}"}}' for kind in ("tokenizer", "executor", "postprocess")]
    async with asyncio.timeout(60):
        while True:
            metrics = await router.metrics()
            if all(metrics.get(name, 0) == count for name in names):
                return
            await asyncio.sleep(0.05)


async def _until_routers_serve(gateway: Service, count: int) -> None:
    """A router serves before it knows its workers, and what its models are is asked for now and then."""
    async with asyncio.timeout(60), open_channel(gateway.address) as channel:
        fleet = FleetServiceStub(channel)
        while True:
            workers = (await fleet.GetFleet(GetFleetRequest(), timeout=5)).workers
            if sum(w.state == WORKER_STATE_SERVING and bool(w.instance.model_versions) for w in workers) == count:
                return
            await asyncio.sleep(0.05)


def _plan(directory: Path) -> World:
    ports = iter(free_ports(2 * (4 * len(REGIONS) + 2)))

    def service(name: str, label: str, **settings: str) -> Service:
        return Service(name, next(ports), next(ports), settings, directory / f"{name}-{label}.log")

    regions: dict[str, Region] = {}
    for region in REGIONS:
        workers = [
            service("tokenizer", region, REGION=region, **_MODELS),
            service("executor", region, REGION=region, **_EXECUTOR),
            service("postprocess", region, REGION=region, **_MODELS),
        ]
        router = service("router", region, REGION=region, **_QUICK, **_fleet(workers))
        regions[region] = Region(region, router, workers)
    tables = "".join(_ROUTERS.format(name=name, address=region.router.address) for name, region in regions.items())
    (directory / "gateway.toml").write_text(_TENANTS + tables)
    (directory / "door.toml").write_text(_TENANTS)
    everybody = [worker for region in regions.values() for worker in region.workers]
    return World(
        regions,
        service("router", "gateway", CONFIG_FILE=str(directory / "gateway.toml"), **_QUICK),
        service("router", "door", CONFIG_FILE=str(directory / "door.toml"), **_QUICK, **_fleet(everybody)),
    )


def _fleet(workers: Iterable[Service]) -> dict[str, str]:
    kinds = {"tokenizer": "TOKENIZERS", "executor": "EXECUTORS", "postprocess": "POSTPROCESSORS"}
    found: dict[str, list[str]] = {}
    for worker in workers:
        found.setdefault(kinds[worker.name], []).append(worker.address)
    return {name: ",".join(addresses) for name, addresses in found.items()}


async def _messages(service: Service) -> float:
    names = _MESSAGES[service.name]
    metrics = await service.metrics()
    return sum(value for name, value in metrics.items() if name.partition("{")[0] in names)
