"""Announcements over a real NATS, and over the bus in memory."""

from __future__ import annotations

import pytest

from contract import fleet_bus_contract
from contract.fleet_bus_contract import Check
from contract.kv_bus_contract import Bus


@pytest.mark.parametrize("check", fleet_bus_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_contract(bus: Bus, check: Check) -> None:
    await check(bus)
