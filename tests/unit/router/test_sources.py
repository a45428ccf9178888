"""The settings, DNS and the broker as one set of members."""

from __future__ import annotations

import pytest

from weir.fleet.v1.instance_pb2 import INSTANCE_KIND_EXECUTOR, INSTANCE_KIND_ROUTER, Instance
from weir_chassis.inmemory.broker import InMemoryBus
from weir_chassis.server import new_chassis
from weir_router.fleet.membership import Place
from weir_router.fleet.sources import open_sources
from weir_router.settings import RouterSettings


async def test_every_source_is_heard_and_says_when_it_is_not() -> None:
    settings = RouterSettings(executors=("e:1", "dns:///localhost:7001"), tokenizers=("dns:///no.such.host.invalid:1",))
    chassis, bus = new_chassis("router"), InMemoryBus()
    broker = chassis.buses.in_memory = bus.connect()
    async with chassis.background:
        with open_sources(settings, chassis) as sources:
            while not any(member.source == "dns" for member in sources.membership(()).members.values()):
                await sources.changed.wait()
                sources.changed.clear()
            assert Place("executor", "127.0.0.1:7001") in sources.membership(()).members
            assert sources.announcements is not None
            announced = Instance(instance_id="i", kind=INSTANCE_KIND_EXECUTOR, address="e:2")
            router = Instance(instance_id="r", kind=INSTANCE_KIND_ROUTER, address="r:1")
            for instance in (announced, router):
                instance.lease.FromSeconds(60)
                sources.announcements.announced.hear(instance, chassis.clock.monotonic())
            found = sources.membership(()).members
            assert (found[Place("executor", "e:1")].source, found[Place("executor", "e:2")].source) == (
                "static",
                "announced",
            )
            assert list(sources.others()) == [router]
            broker.lose()
            while sources.unheard() != ["the broker", "DNS for no.such.host.invalid"]:
                await chassis.clock.sleep(0.01)


async def test_who_will_never_be_heard_of_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    chassis = new_chassis("router")
    async with chassis.background:
        with open_sources(RouterSettings(executors=("e:1",)), chassis) as sources:
            assert (sources.unheard(), list(sources.others())) == ([], [])
            assert list(sources.membership(()).members) == [Place("executor", "e:1")]
    said = capsys.readouterr().out
    assert "WEIR_ROUTER_TOKENIZERS" in said
    assert "WEIR_ROUTER_POSTPROCESSORS" in said
    assert "WEIR_ROUTER_EXECUTORS" not in said
