from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from weir_kvstore.metrics import StoreCollector
from weir_kvstore.tier import Counters, TierReport


@dataclass
class Books:
    """A store, as far as its metrics look at it."""

    tiers: Sequence[TierReport]
    saved_seconds: float = 0.0

    def reports(self) -> Sequence[TierReport]:
        return self.tiers


def scraped(*tiers: TierReport) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(StoreCollector(Books(tiers, saved_seconds=2.5)))  # type: ignore[arg-type]
    return registry


RAM = TierReport(
    "ram",
    blocks=3,
    bytes=300,
    capacity_bytes=400,
    counters=Counters(hits=7, evicted=5, read_bytes=900),
    policy="lru",
    evicted_by_policy={"lfu": 4, "lru": 1},
)
PEER = TierReport("peer", 0, 0, 0, Counters(misses=2), fault="no answer")


def test_every_tier_is_told_apart() -> None:
    registry = scraped(RAM, PEER)
    assert registry.get_sample_value("weir_kvstore_bytes", {"tier": "ram"}) == 300
    assert registry.get_sample_value("weir_kvstore_hits_blocks_total", {"tier": "ram"}) == 7
    assert registry.get_sample_value("weir_kvstore_read_bytes_total", {"tier": "ram"}) == 900
    assert registry.get_sample_value("weir_kvstore_misses_blocks_total", {"tier": "peer"}) == 2
    assert registry.get_sample_value("weir_kvstore_fault", {"tier": "ram"}) == 0
    assert registry.get_sample_value("weir_kvstore_fault", {"tier": "peer"}) == 1
    assert registry.get_sample_value("weir_kvstore_saved_seconds_total") == 2.5


def test_evictions_are_told_by_policy() -> None:
    """A policy that is changed while the store runs does not take the other's evictions with it."""
    redis = TierReport("redis", 0, 0, 10, Counters(evicted=6), policy="fifo")
    registry = scraped(RAM, PEER, redis)

    def evicted(tier: str, policy: str) -> float | None:
        return registry.get_sample_value("weir_kvstore_evicted_blocks_total", {"tier": tier, "policy": policy})

    assert (evicted("ram", "lfu"), evicted("ram", "lru")) == (4, 1)
    assert (evicted("redis", "fifo"), evicted("peer", "")) == (6, 0)
    fresh = TierReport("disk", 0, 0, 10, Counters(), policy="s3fifo")
    assert scraped(fresh).get_sample_value(
        "weir_kvstore_evicted_blocks_total", {"tier": "disk", "policy": "s3fifo"}
    ) == 0  # fmt: skip
