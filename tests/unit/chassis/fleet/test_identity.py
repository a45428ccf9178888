"""What a process says of itself: its own, its service's and its health's part, and that a change is heard of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from random import Random

from weir.fleet.v1.instance_pb2 import GetInstanceRequest, Instance, InstanceKind
from weir.inference.v1.model_pb2 import ModelVersion
from weir_chassis.fleet.identity import Identity
from weir_chassis.fleet.servicer import InstanceServicer
from weir_chassis.health import Health
from weir_chassis.testing import VirtualClock, settle

M1, M2 = ModelVersion(model="m1"), ModelVersion(model="m2")


def identity(seed: int = 0, epoch: float = 1000.0, health: Health | None = None) -> Identity:
    return Identity("executor", health or Health(), VirtualClock(epoch=epoch), Random(seed))


def test_another_start_is_another_instance_of_a_later_epoch() -> None:
    first, second = identity(1).instance(), identity(2, epoch=1000.001).instance()
    assert first.instance_id != second.instance_id
    assert (first.epoch, second.epoch) == (1_000_000_000, 1_000_001_000)
    assert first.kind == InstanceKind.INSTANCE_KIND_EXECUTOR
    assert len(first.instance_id) <= 64


async def test_what_its_parts_say_is_one_instance_and_a_new_description_replaces_the_old_one() -> None:
    health = Health()
    known = identity(health=health)
    known.describe(Instance(model_versions=[M1, M2], capabilities=["guides"], capacity=3))
    known.place(address="e:1", region="eu-west")
    known.describe(Instance(model_versions=[M2], weight=2.0))
    said = (await InstanceServicer(known).GetInstance(GetInstanceRequest(), None)).instance
    assert (list(said.model_versions), list(said.capabilities), said.capacity, said.weight) == ([M2], [], 0, 2.0)
    assert (said.address, said.region, said.draining, said.HasField("lease")) == ("e:1", "eu-west", False, False)
    health.stop()
    assert known.instance().draining


async def test_every_change_is_heard_of_and_nothing_else() -> None:
    health = Health()
    known = identity(health=health)
    changes: list[Callable[[], None]] = [
        partial(known.describe, Instance(capacity=1)),
        partial(known.place, address="e:2"),
        health.stop,
    ]
    for change in changes:
        waiting = asyncio.create_task(known.differs_from(known.instance()))
        known.place()  # says what it said before
        await settle()
        assert not waiting.done()
        change()
        await asyncio.wait_for(waiting, 5)
