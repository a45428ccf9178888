"""What executors hold in their own pools, tier one of every prefix, as far as their events tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weir.inference.v1.kv_event_pb2 import KvEvent
from weir_chassis.kv_events.blocks import num_blocks
from weir_chassis.kv_events.wire import Source


@dataclass(frozen=True, slots=True)
class SourceReport:
    source: str
    blocks: int
    age_seconds: float  # since it was heard


class Inventory:
    """Counts, and keeps no hash: a follower of events never hears the same one twice, nor misses one."""

    def __init__(self, observe: Callable[[int], None] = lambda _: None) -> None:
        """`observe` is called with the blocks of all sources at each change: the gauge's door."""
        self._observe = observe
        self._blocks: dict[Source, Counter[str]] = {}  # by tier; as many sources as the follower follows
        self._total = 0

    def reset(self, source: Source) -> None:
        self.lost(source)
        self._blocks[source] = Counter()

    def apply(self, source: Source, events: Sequence[KvEvent]) -> None:
        tiers = self._blocks[source]
        before = tiers.total()
        for event in events:
            match event.WhichOneof("event"):
                case "stored":
                    tiers[event.stored.tier] += num_blocks(event)
                case "removed":
                    tiers[event.removed.tier] -= num_blocks(event)
                case "cleared":
                    tiers.pop(event.cleared.tier, None)
        self._count(tiers.total() - before)

    def lost(self, source: Source) -> None:
        self._count(-self._blocks.pop(source, Counter()).total())

    def reports(self, ages: dict[Source, float]) -> list[SourceReport]:
        return [
            SourceReport(source.name, tiers.total(), ages.get(source, 0.0))
            for source, tiers in sorted(self._blocks.items())
        ]

    def _count(self, change: int) -> None:
        self._total += change
        self._observe(self._total)
