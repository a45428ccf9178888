"""Who gives way for a block, before a byte of it is claimed; what a whole tier makes of it is in test_store.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from unit.kvstore.making import record
from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import VirtualClock
from weir_kvstore.block import Block, State
from weir_kvstore.growing import Growing
from weir_kvstore.index import Index
from weir_kvstore.room import Room
from weir_kvstore.rules import Rules
from weir_kvstore.tenants import Quota, Quotas
from weir_kvstore.tiers.arena import ArenaSlots


class Tier:
    """A room, and whom it made go."""

    def __init__(
        self, capacity_bytes: int = 100, *, max_blocks: int = 100, max_bytes: int | None = None, staged: int = 100
    ) -> None:
        self.index, self.slots = Index(), ArenaSlots(capacity_bytes)
        self.clock = VirtualClock()
        self.ledger = LeaseLedger(self.clock)
        growing = Growing(self.index, self.clock, give_back=self.release)
        told = Rules(max_blocks, max_bytes, max_staged_bytes=staged)
        self.room = Room(self.index, self.slots, growing, self.ledger, told, evict=self.evict)
        self.gone: list[int] = []

    def evict(self, blocks: Sequence[Block]) -> None:
        self.gone += [int.from_bytes(block.address.block_hash, "big") for block in blocks]
        for block in blocks:
            if self.index.hide(block, State.REMOVED):
                self.slots.free(block.block_id)

    def release(self, blocks: Sequence[Block]) -> None:
        for block in self.index.release(blocks):
            self.slots.free(block.block_id)

    def put(self, number: int, size_bytes: int = 10, tenant: str = "") -> Block | None:
        block = self.room.reserve(record(number, size_bytes, tenant=tenant), "ram")
        if block is not None:
            self.index.publish([block])
        return block


def test_while_there_is_room_nobody_goes() -> None:
    tier = Tier()
    assert all(tier.put(number) for number in range(10))
    assert (tier.gone, tier.slots.used_bytes) == ([], 100)
    assert tier.put(10)
    assert (tier.gone, tier.slots.used_bytes) == ([0], 100)


def test_what_cannot_fit_pushes_nobody_out() -> None:
    tier = Tier()
    assert tier.put(1)
    assert tier.put(2, 101) is None
    assert (tier.gone, len(tier.index)) == ([], 1)


async def test_who_is_referred_to_stays_and_a_lapsed_lease_holds_nobody() -> None:
    tier = Tier(30)
    held = [block for number in (1, 2, 3) if (block := tier.put(number))]
    tier.index.refer(held)
    lease = tier.ledger.acquire("read", "somebody", expires_after=1.0, on_release=lambda: tier.release(held))
    assert tier.put(4) is None
    await tier.clock.advance(2.0)
    assert lease.live, "nobody has swept yet"
    assert tier.put(5)
    assert (lease.live, len(tier.gone)) == (False, 1)


@pytest.mark.parametrize(("rules", "wanted"), [((100, 50), 5), ((4, None), 4)])
def test_rules_bound_it_below_what_the_slots_have(rules: tuple[int, int | None], wanted: int) -> None:
    tier = Tier(max_blocks=rules[0], max_bytes=rules[1])
    assert all(tier.put(number) for number in range(10))
    assert len(tier.index) == wanted
    assert tier.gone == list(range(10 - wanted))


def test_what_is_staged_is_bounded_by_itself() -> None:
    tier = Tier(staged=20)
    first = tier.room.reserve(record(1), "ram")
    assert first is not None
    assert tier.room.reserve(record(2), "ram") is not None
    assert tier.room.reserve(record(3), "ram") is None
    tier.room.discard(first)
    assert tier.room.reserve(record(3), "ram") is not None
    assert (tier.gone, tier.slots.used_bytes) == ([], 20)


def test_a_quota_is_charged_before_a_byte_is_claimed_and_takes_from_its_own() -> None:
    tier = Tier()
    tier.room.rules = replace(tier.room.rules, quotas=Quotas({"acme": Quota(30)}))
    assert tier.put(100, tenant="other")
    for number in range(5):
        assert tier.put(number, tenant="acme")
        assert tier.index.tenant_bytes["acme"] <= 30
    assert tier.gone == [0, 1]
    assert tier.put(200, 31, tenant="acme") is None


def test_after_shrinking_what_does_not_fit_goes_as_far_as_nobody_refers_to_it() -> None:
    tier = Tier()
    blocks = [block for number in range(10) if (block := tier.put(number))]
    tier.index.refer(blocks[:4])
    tier.room.rules = replace(tier.room.rules, max_bytes=20)
    tier.room.shrink()
    assert tier.gone == [4, 5, 6, 7, 8, 9]
    tier.release(blocks[:4])
    tier.room.shrink()
    assert tier.slots.used_bytes == 20
    tier.index.check_integrity()
