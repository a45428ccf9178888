from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from weir_kvstore.policies.lru import Lru
from weir_kvstore.tenants import Books, Need, Quota, Quotas, Take, make_room, shares

TENANTS = ["a", "b", "c"]


def room(quotas: Quotas, used: dict[str, int], tenant: str, size: int, *, lacking: int, blocks: int = 0) -> object:
    return make_room(quotas, Books(100, used, used), Need(tenant, size, lacking, blocks))


def test_nobody_gives_way_where_there_is_room() -> None:
    assert room(Quotas(), {"a": 90}, "b", 10, lacking=0) == []
    assert room(Quotas(), {"a": 50}, "b", 10, lacking=-40) == []


def test_one_tenant_alone_evicts_its_own() -> None:
    assert room(Quotas(), {"a": 100}, "a", 10, lacking=10) == [Take("a", 10, 0)]
    assert room(Quotas(), {"a": 5}, "a", 1, lacking=-94, blocks=1) == [Take("a", 1, 1)]


def test_whoever_is_furthest_over_goes_first() -> None:
    used = {"a": 60, "b": 35, "c": 5}
    assert room(Quotas(), used, "c", 10, lacking=10) == [Take("a", 10, 0)]
    assert room(Quotas(), used, "c", 28, lacking=28) == [Take("a", 27, 0), Take("b", 1, 0)]


def test_a_share_is_by_weight() -> None:
    quotas = Quotas({"a": Quota(share=3)})
    assert shares(quotas, Books(100, {"a": 1}, {}), "b") == {"a": 75, "b": 25}
    assert room(quotas, {"a": 70, "b": 30}, "a", 5, lacking=5) == [Take("b", 5, 0)]
    assert room(quotas, {"a": 75, "b": 25}, "b", 5, lacking=5) == [Take("b", 5, 0)]


def test_a_tenant_at_its_quota_evicts_only_its_own() -> None:
    quotas = Quotas({"a": Quota(max_bytes=20)})
    assert room(quotas, {"a": 20, "b": 80}, "a", 10, lacking=10) == [Take("a", 10, 0)]
    assert room(quotas, {"a": 20, "b": 10}, "a", 10, lacking=-60) == [Take("a", 10, 0)]
    assert room(quotas, {"b": 10}, "a", 21, lacking=0) is None  # larger than its whole quota
    assert make_room(quotas, Books(100, {"a": 20}, {}), Need("a", 10, 0)) is None  # all of it is leased


def test_nobody_within_its_share_gives_way() -> None:
    leased = Books(100, {"a": 60, "b": 40}, {"b": 40})
    assert make_room(Quotas(), leased, Need("a", 10, 10)) is None
    assert make_room(Quotas(), leased, Need("b", 10, 10)) == [Take("b", 10, 0)]


def test_a_smaller_quota_is_enforced() -> None:
    quotas = Quotas({"a": Quota(max_bytes=20)}, others=Quota(max_bytes=50))
    assert quotas.over({"a": 30, "b": 50, "c": 51}) == [Take("a", 10, 0), Take("c", 1, 0)]


@dataclass
class Tier:
    """As small as a tier can be that does what it is told."""

    quotas: Quotas
    capacity: int = 100
    sizes: dict[int, tuple[str, int]] = field(default_factory=dict)
    leased: set[int] = field(default_factory=set)
    orders: dict[str, Lru] = field(default_factory=lambda: defaultdict(Lru))

    def used(self) -> dict[str, int]:
        used: dict[str, int] = defaultdict(int)
        for tenant, size in self.sizes.values():
            used[tenant] += size
        return dict(used)

    def put(self, block_id: int, tenant: str, size: int) -> None:
        used = self.used()
        books = Books(self.capacity, used, {t: order.size_bytes for t, order in self.orders.items()})
        takes = make_room(self.quotas, books, Need(tenant, size, sum(used.values()) + size - self.capacity))
        if takes is None:
            return
        self.check(takes, books, tenant, size)
        for take in takes:
            for victim in self.victims(take):
                self.orders[take.tenant].remove(victim)
                del self.sizes[victim]
        self.sizes[block_id] = (tenant, size)
        self.orders[tenant].add(block_id, b"", size)

    def victims(self, take: Take) -> list[int]:
        victims = self.orders[take.tenant].victims(size_bytes=take.size_bytes, blocks=take.blocks)
        assert victims is not None, "no more is taken than may go"
        return victims

    def check(self, takes: list[Take], books: Books, asking: str, size: int) -> None:
        """Whoever loses a block is over its share, or asks itself, and then nobody else who is over could give."""
        assert len({take.tenant for take in takes}) == len(takes)
        fair = shares(self.quotas, books, asking)
        after = dict(books.used)
        after[asking] = after.get(asking, 0) + size
        limit = self.quotas.of(asking).max_bytes
        own_quota = 0 if limit is None else max(0, after[asking] - limit)
        for take in takes:
            if take.tenant != asking:
                assert after[take.tenant] > fair[take.tenant]
                assert take.size_bytes <= math.ceil(after[take.tenant] - fair[take.tenant])
        mine = sum(take.size_bytes for take in takes if take.tenant == asking)
        if mine > max(own_quota, math.ceil(after[asking] - fair[asking])):
            taken = {take.tenant: take.size_bytes for take in takes}
            for other in after.keys() - {asking}:
                over = math.ceil(after[other] - fair[other])
                assert taken.get(other, 0) >= min(over, books.may_give(other))


QUOTAS = st.builds(
    Quotas,
    st.dictionaries(
        st.sampled_from(TENANTS), st.builds(Quota, st.none() | st.integers(5, 80), st.sampled_from([0.5, 1.0, 3.0]))
    ),
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "put", "lease", "return"]), st.sampled_from(TENANTS), st.integers(1, 30)),
    max_size=80,
)


@given(QUOTAS, STEPS)
def test_no_quota_is_ever_passed_and_offenders_go_first(quotas: Quotas, steps: list[tuple[str, str, int]]) -> None:
    tier = Tier(quotas)
    for number, (call, tenant, size) in enumerate(steps):
        free = [block for block in tier.sizes if block not in tier.leased]
        if call == "put":
            tier.put(number, tenant, size)
        elif call == "lease" and free:
            block = free[size % len(free)]
            tier.leased.add(block)
            tier.orders[tier.sizes[block][0]].remove(block)
        elif call == "return" and tier.leased:
            block = tier.leased.pop()
            owner, block_bytes = tier.sizes[block]
            tier.orders[owner].add(block, b"", block_bytes)
        used = tier.used()
        assert sum(used.values()) <= tier.capacity
        for each, held in used.items():
            limit = quotas.of(each).max_bytes
            assert limit is None or held <= limit


@given(STEPS)
def test_whatever_may_go_is_enough_when_nothing_is_leased(steps: list[tuple[str, str, int]]) -> None:
    """Shares fill the capacity, so somebody is over theirs whenever there is no room."""
    tier = Tier(Quotas())
    for number, (_, tenant, size) in enumerate(steps):
        tier.put(number, tenant, size)
        assert number in tier.sizes
