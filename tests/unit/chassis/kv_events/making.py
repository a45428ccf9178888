"""Blocks and events for tests, and a random history of a source."""

from __future__ import annotations

from random import Random

from weir.inference.v1.kv_event_pb2 import KvEvent
from weir_chassis.kv_events import blocks
from weir_chassis.kv_events.blocks import HeldBlocks

TIERS = ("ram", "disk")


def name(number: int) -> bytes:
    """A block hash."""
    return number.to_bytes(16, "little")


def stored(first: int, count: int = 1, parent: bytes = b"", tier: str = "ram", namespace: bytes = b"") -> KvEvent:
    (event,) = blocks.stored([name(i) for i in range(first, first + count)], parent, tier=tier, namespace=namespace)
    return event


def removed(*numbers: int, tier: str = "ram", namespace: bytes = b"") -> KvEvent:
    (event,) = blocks.removed([name(i) for i in numbers], tier=tier, namespace=namespace)
    return event


def some_event(random: Random) -> KvEvent:
    tier, kind = random.choice(TIERS), random.random()
    if kind < 0.05:
        return blocks.cleared(tier=tier)
    if kind < 0.4:
        return removed(*random.sample(range(30), 2), tier=tier)
    return stored(random.randrange(30), random.randrange(1, 4), name(random.randrange(30)), tier)


def everything(held: HeldBlocks) -> dict[tuple[str, bytes], dict[bytes, bytes]]:
    """Tier and namespace → block → parent."""
    return {key: dict(found) for key, found in held._held.items()}
