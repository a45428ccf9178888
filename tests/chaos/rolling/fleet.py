"""Two of every service, and each of them restarted as an operator does: terminated, waited for, started again."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos.services import DEMO_MODEL, Service, until_async
from servers import free_ports
from weir_chassis.health import model_name

_OF_A_KIND = 2
KINDS = ("tokenizer", "kvstore", "executor", "postprocess", "router")
_MODEL = "demo"
# Two executors share two cores with all the rest.
_EXECUTOR = {"MODEL": _MODEL, "MODEL_DIR": str(DEMO_MODEL), "NUM_THREADS": "1", "MAX_NUM_SEQS": "64"}
_FAKE = {"ENGINE": "fake", "FAKE_STEP_SECONDS": "0.02"}


@dataclass
class Fleet:
    services: list[Service]

    def of_kind(self, kind: str) -> list[Service]:
        return [service for service in self.services if service.name == kind]

    @property
    def routers(self) -> list[str]:
        return [router.address for router in self.of_kind("router")]

    async def restart(self, service: Service) -> int:
        """The code that the old process ended with. Returns when the new one has its part of the work again."""
        service.signal(signal.SIGTERM)
        code = await service.wait()
        service.start()
        await service.until_serving()
        await self.until_known()
        return code

    async def until_known(self) -> None:
        """Every router knows all workers, and can answer."""
        for router in self.of_kind("router"):
            await router.until_serving(model_name(_MODEL))
            for kind in ("executor", "tokenizer", "postprocess"):
                name = f'weir_router_healthy_workers{{kind="{kind}"}}'

                async def knows_all(router: Service = router, name: str = name) -> bool:
                    return (await router.metrics()).get(name, 0) >= _OF_A_KIND

                await until_async(knows_all)

    async def leases(self) -> float:
        """What anybody holds, when all is over and has had a moment to be given back."""
        left = 0.0
        for _ in range(100):
            left = sum([await service.leases() for service in self.services])
            if not left:
                break
        return left


@asynccontextmanager
async def running_fleet(directory: Path, *, fake: bool, drain_seconds: float) -> AsyncIterator[Fleet]:
    """All of them serve, and the routers know it.

    `fake`: tokens by arithmetic, a step each 20 ms. `drain_seconds`: of all but the routers, whose streams nobody else
    could finish.
    """
    ports = iter(free_ports(2 * _OF_A_KIND * len(KINDS)))
    services: list[Service] = []

    def add(name: str, settings: dict[str, str]) -> list[Service]:
        added = []
        for index in range(_OF_A_KIND):
            port, metrics_port = next(ports), next(ports)
            told = {key: value.format(i=index) for key, value in settings.items()}
            log = directory / f"{name}-{index}.log"
            if name != "router":
                told["DRAIN_SECONDS"] = str(drain_seconds)
            added.append(Service(name, port, metrics_port, told, log))
        services.extend(added)
        return added

    models = {"MODELS": f"{_MODEL}={DEMO_MODEL}"}
    tokenizers, kvstores = add("tokenizer", models), add("kvstore", {})
    executors = add("executor", {**_EXECUTOR, **(_FAKE if fake else {})})
    for executor, kvstore in zip(executors, kvstores, strict=True):
        executor.settings = {**executor.settings, "KVSTORE_ADDRESS": kvstore.address}
    of = {"TOKENIZERS": tokenizers, "EXECUTORS": executors, "POSTPROCESSORS": add("postprocess", models)}
    add("router", {name: ",".join(each.address for each in workers) for name, workers in of.items()})
    async with AsyncExitStack() as stack:
        for service in services:
            stack.callback(service.end)
            service.start()
        for service in services:
            await service.until_serving()
        fleet = Fleet(services)
        await fleet.until_known()
        yield fleet
