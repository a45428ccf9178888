"""Tiers that others put into too: they are asked, all at once, and waited for no longer than a lookup can bear."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Final

from weir_chassis.breaker import Breaker
from weir_chassis.clock import Clock
from weir_kvstore.tier import Tier

# Whoever is slower than this is no use to a request that waits: in 100 ms thousands of tokens are computed again.
_MATCH_SECONDS: Final = 0.1


class SharedTiers:
    """Asks them what they hold; one that does not answer in time is left alone for a while."""

    def __init__(self, tiers: Sequence[Tier], clock: Clock, random: Random) -> None:
        self._tiers = [(tier, Breaker(clock, random)) for tier in tiers]

    def __len__(self) -> int:
        return len(self._tiers)

    async def match(self, namespace: bytes, block_hashes: Sequence[bytes]) -> tuple[str, int]:
        """Who holds the most leading blocks of this chain, and how many; among equals the first."""
        asked = (self._ask(tier, breaker, namespace, block_hashes) for tier, breaker in self._tiers)
        counts = await asyncio.gather(*asked)
        best = max(range(len(counts)), key=lambda position: counts[position])
        return self._tiers[best][0].name, counts[best]

    async def _ask(self, tier: Tier, breaker: Breaker, namespace: bytes, block_hashes: Sequence[bytes]) -> int:
        if not breaker.allows():
            return 0
        try:
            async with asyncio.timeout(_MATCH_SECONDS):
                count = await tier.match(namespace, block_hashes)
        except TimeoutError:
            breaker.failed()
            return 0
        breaker.succeeded()
        return min(count, len(block_hashes))
