"""KV events over a real NATS, and over the double that other tests use."""

from __future__ import annotations

import pytest

from contract import kv_bus_contract
from contract.kv_bus_contract import Bus, Check
from weir_chassis.kv_events import follower, publisher


@pytest.fixture(autouse=True)
def _quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(follower, "SILENCE_SECONDS", 1.0)


@pytest.mark.parametrize("check", kv_bus_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_contract(bus: Bus, check: Check) -> None:
    await check(bus)
