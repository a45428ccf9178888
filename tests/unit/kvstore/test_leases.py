from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from unit.kvstore.making import record
from weir_chassis.errors import LeaseExpired, NotFound, Overloaded
from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import VirtualClock, assert_no_leases
from weir_kvstore import leases as module
from weir_kvstore.block import Block
from weir_kvstore.leases import Leased, ReadLeases

BLOCKS = [Block(number, record(number), "ram") for number in range(3)]


class Fixture:
    def __init__(self, max_live: int = 3) -> None:
        self.clock = VirtualClock()
        self.ledger = LeaseLedger(self.clock)
        self.returned: list[tuple[Leased, ...]] = []
        ids = iter("abcdefghij")
        self.leases = ReadLeases(self.ledger, max_live=max_live, new_id=lambda: next(ids), give_back=self.give_back)

    def give_back(self, blocks: Sequence[Leased]) -> None:
        self.returned.append(tuple(blocks))

    def grant(self, seconds: float) -> str:
        self.leases.require_place()
        return self.leases.grant(BLOCKS, owner="request-1", seconds=seconds)


async def test_released_once() -> None:
    fixture = Fixture()
    lease_id = fixture.grant(10)
    assert fixture.leases.blocks(lease_id) == tuple(BLOCKS)
    assert [lease.owner for lease in fixture.ledger.live()] == ["request-1"]
    fixture.leases.release(lease_id)
    fixture.leases.release(lease_id)
    assert fixture.returned == [tuple(BLOCKS)]
    assert (len(fixture.leases), fixture.leases.num_expired) == (0, 0)
    with pytest.raises(NotFound, match="lease 'a' not found"):
        fixture.leases.blocks(lease_id)
    assert_no_leases(fixture.ledger)


async def test_a_lapsed_lease_is_noticed_by_its_user() -> None:
    fixture = Fixture()
    lease_id = fixture.grant(10)
    await fixture.clock.advance(9.9)
    assert fixture.leases.blocks(lease_id)
    await fixture.clock.advance(0.1)
    for _ in range(2):
        with pytest.raises(LeaseExpired):
            fixture.leases.blocks(lease_id)
    assert (fixture.returned, fixture.leases.num_expired) == ([tuple(BLOCKS)], 1)
    assert_no_leases(fixture.ledger)


async def test_a_lapsed_lease_is_noticed_by_the_sweep() -> None:
    fixture = Fixture()
    lease_id = fixture.grant(10)
    await fixture.clock.advance(10)
    assert len(fixture.ledger.expire()) == 1
    assert (len(fixture.leases), fixture.leases.num_expired, len(fixture.returned)) == (0, 1, 1)
    with pytest.raises(LeaseExpired):
        fixture.leases.renew(lease_id, 10)
    fixture.leases.release(lease_id)


async def test_a_renewal_only_lengthens() -> None:
    fixture = Fixture()
    lease_id = fixture.grant(10)
    fixture.leases.renew(lease_id, 20)
    fixture.leases.renew(lease_id, 1)
    await fixture.clock.advance(19.9)
    assert fixture.leases.blocks(lease_id)
    await fixture.clock.advance(0.1)
    with pytest.raises(LeaseExpired):
        fixture.leases.blocks(lease_id)


async def test_the_bound_says_when_to_come_back() -> None:
    fixture = Fixture(max_live=2)
    fixture.grant(10)
    second = fixture.grant(4)
    await fixture.clock.advance(1)
    with pytest.raises(Overloaded, match="2 read leases") as raised:
        fixture.grant(1)
    assert raised.value.retry_after == timedelta(seconds=3)
    fixture.leases.release(second)
    fixture.grant(1)


async def test_lapsed_leases_take_no_place() -> None:
    fixture = Fixture(max_live=1)
    fixture.grant(1)
    await fixture.clock.advance(1)
    assert fixture.grant(1) == "b"


async def test_lapsed_leases_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED_LAPSED", 2)
    fixture = Fixture()
    lease_ids = [fixture.grant(1) for _ in range(3)]
    await fixture.clock.advance(1)
    fixture.ledger.expire()
    with pytest.raises(NotFound):
        fixture.leases.blocks(lease_ids[0])
    for lease_id in lease_ids[1:]:
        with pytest.raises(LeaseExpired):
            fixture.leases.blocks(lease_id)
