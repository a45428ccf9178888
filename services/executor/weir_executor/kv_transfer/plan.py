"""What a request may load, and what it loaded. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weir_executor.request import StoredPrefix
from weir_executor.step_output import RequestEnd

# MatchPrefixRequest's own limit.
MAX_MATCHED_BLOCKS = 65_536


@dataclass(frozen=True, slots=True)
class LoaderLimits:
    deadline_seconds: float  # for finding out what is stored, and for the first bytes
    bytes_per_second: float  # what is loaded gets its size divided by this in addition; and the guess at the beginning
    min_blocks: int  # fewer are computed sooner than loaded
    budget_bytes: int  # of prefixes on their way or not yet taken by the engine, all requests together
    max_loads: int  # at once: more would share the same wire and all be late


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to ask the store for: `block_hashes` are those of the prompt's blocks from number `first_block` on."""

    namespace: bytes
    local_hashes: Sequence[bytes]  # of the blocks before, which the engine holds itself
    block_hashes: Sequence[bytes]

    @property
    def first_block(self) -> int:
        return len(self.local_hashes)

    @property
    def flight_key(self) -> tuple[bytes, bytes]:
        """Plans that agree in this begin with the same block, and a hash names all that comes before it."""
        return self.namespace, self.block_hashes[0]


@dataclass(frozen=True, slots=True)
class TierRange:
    """So many blocks of a chain, one after another in one tier."""

    blocks: int
    tier: str  # as the store names it; empty: it does not say


@dataclass(frozen=True, slots=True)
class Source:
    """Where a prompt's blocks from number `first_block` on were before they came here."""

    first_block: int
    ranges: Sequence[TierRange]
    block_size: int

    def tokens_by_tier(self, end: RequestEnd) -> dict[str, int]:
        """Of the prompt's tokens that `end` says were loaded: they follow those that the engine had itself."""
        begin = end.cached_prompt_tokens // self.block_size
        stop, at = begin + end.loaded_prompt_tokens // self.block_size, self.first_block
        found: dict[str, int] = {}
        for each in self.ranges:
            blocks = min(stop, at + each.blocks) - max(begin, at)
            if blocks > 0 and each.tier:
                found[each.tier] = found.get(each.tier, 0) + blocks * self.block_size
            at += each.blocks
        return found


@dataclass(frozen=True, slots=True)
class HeldPrefix:
    """Verified blocks, where they were, and the memory they take, to be given back once the engine has them."""

    prefix: StoredPrefix
    release: Callable[[], None]
    ranges: Sequence[TierRange] = ()
