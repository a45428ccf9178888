"""What the contracts are tested on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from contract.buses import Doubles, NatsBus
from contract.kv_bus_contract import Bus
from fakes.broker import FakeBus
from servers import NatsServer


@pytest.fixture(params=["nats", "double"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "nats":
        server: NatsServer = request.getfixturevalue("nats")
        yield NatsBus(server.url)
    else:
        yield Doubles(FakeBus())
