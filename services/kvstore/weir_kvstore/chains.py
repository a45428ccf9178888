"""Looking a chain up in several tiers at once, in one turn of the event loop. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Final

from weir_kvstore.leases import Elsewhere, Leased
from weir_kvstore.local_tier import LocalTier

# Looked up at once; behind a miss no more than this is looked up in vain.
_WINDOW: Final = 1024
_TIER = attrgetter("tier")


@dataclass(frozen=True, slots=True)
class Range:
    """Blocks of a chain, one after another in one tier."""

    blocks: int
    tier: str


@dataclass(slots=True)
class Chain:
    """Leading blocks of a chain that are held, each where it is nearest."""

    blocks: list[Leased] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)

    def add(self, blocks: Sequence[Leased], tier: str) -> None:
        """The next blocks; `tier` if all are in one, which is the rule, and then nothing is done for each of them."""
        self.blocks += blocks
        if tier and blocks:
            self._add_range(len(blocks), tier)
            return
        for name, group in groupby(blocks, _TIER):
            self._add_range(len(list(group)), name)

    def _add_range(self, blocks: int, tier: str) -> None:
        if self.ranges and self.ranges[-1].tier == tier:
            blocks += self.ranges.pop().blocks
        self.ranges.append(Range(blocks, tier))


def look_up(
    local: Collection[LocalTier],
    namespace: bytes,
    block_hashes: Sequence[bytes],
    elsewhere: Mapping[int, Elsewhere] | None = None,
) -> Chain:
    """What these tiers, fastest first, hold of the chain, filled up by what shared tiers have by its position."""
    chain = Chain()
    for start in range(0, len(block_hashes), _WINDOW):
        hashes = block_hashes[start : start + _WINDOW]
        found: Sequence[Leased | None] = ()
        for tier in local:
            here = tier.lookup(namespace, hashes)
            if not any(found):
                found, only = here, tier.name
            elif any(here):
                found, only = _filled(found, here), ""
            if all(found):
                break
        if elsewhere:
            found, only = _filled(found, [elsewhere.get(start + place) for place in range(len(hashes))]), ""
        leading = _leading(found)
        chain.add(leading, only)
        if len(leading) < len(hashes):
            break
    return chain


def _filled(found: Sequence[Leased | None], below: Sequence[Leased | None]) -> list[Leased | None]:
    return [block or other for block, other in zip(found, below, strict=True)]


def _leading(found: Sequence[Leased | None]) -> list[Leased]:
    """Those before the first that is missing."""
    end = len(found) if all(found) else found.index(None)
    return found[:end]  # type: ignore[return-value]  # none of them is None
