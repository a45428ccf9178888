"""What executors will hold of the prompts that they were just given: known here before their events tell. Pure.

It is a guess, and short-lived: by its end the executor's own events have told, or it has not computed the prompt. Of
each executor and first block, the newest prompt is remembered; two prompts that share their first block share as many
as have equal hashes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from weir.kvstore.v1.block_hash import DIGEST_BYTES

# From a choice until the prompt is computed and its events are here, in a fleet that keeps up.
LIFETIME_SECONDS: Final = 10.0
# 32,000 prompts of 32 blocks, or 500 of two thousand: what a busy router gives away meanwhile.
MAX_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Routed:
    address: str
    block_hashes: bytes
    expires_at: float


class RoutedPrefixes:
    """`now` is in monotonic seconds of one clock."""

    def __init__(self, lifetime_seconds: float = LIFETIME_SECONDS, max_bytes: int = MAX_BYTES) -> None:
        self._lifetime_seconds, self._max_bytes = lifetime_seconds, max_bytes
        # By first block and address, the oldest first; and for each first block, by address.
        self._routed: OrderedDict[tuple[bytes, str], _Routed] = OrderedDict()
        self._by_first: dict[bytes, dict[str, _Routed]] = {}
        self.size_bytes = 0

    def note(self, address: str, block_hashes: bytes, now: float) -> None:
        """A prompt of these blocks goes to this executor."""
        if not block_hashes or len(block_hashes) > self._max_bytes:
            return
        first = block_hashes[:DIGEST_BYTES]
        self._forget((first, address))
        routed = _Routed(address, block_hashes, now + self._lifetime_seconds)
        self._routed[first, address] = self._by_first.setdefault(first, {})[address] = routed
        self.size_bytes += len(block_hashes)
        while self.size_bytes > self._max_bytes or next(iter(self._routed.values())).expires_at <= now:
            self._forget(next(iter(self._routed)))

    def leading_blocks(self, block_hashes: Sequence[bytes], now: float) -> Iterator[tuple[str, int]]:
        """Executors that were lately given a prompt which begins like this one, and how many blocks are the same."""
        for routed in self._by_first.get(block_hashes[0], {}).values() if block_hashes else ():
            if routed.expires_at > now:
                yield routed.address, _common(block_hashes, routed.block_hashes)

    def lost(self, address: str) -> None:
        """What that executor was given is gone with it."""
        for key in [key for key in self._routed if key[1] == address]:
            self._forget(key)

    def _forget(self, key: tuple[bytes, str]) -> None:
        routed = self._routed.pop(key, None)
        if routed is None:
            return
        first, address = key
        self.size_bytes -= len(routed.block_hashes)
        del self._by_first[first][address]
        if not self._by_first[first]:
            del self._by_first[first]


def _common(block_hashes: Sequence[bytes], other: bytes) -> int:
    """Blocks that are the same in both, from the first on. One hash that is equal makes all before it equal."""
    count = min(len(block_hashes), len(other) // DIGEST_BYTES)

    def differs(position: int) -> bool:
        start = DIGEST_BYTES * position
        return other[start : start + DIGEST_BYTES] != block_hashes[position]

    return bisect_left(range(count), True, key=differs)
