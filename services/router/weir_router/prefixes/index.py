"""Which leading blocks of a prompt each executor holds, as far as its KV events tell. Pure.

    stored / removed / cleared / reset  ──▶  one set of hashes for each executor and tier
    the prompt's hashes, first to last  ──▶  how many of them, from the first on

A hash is that of a block and of all before it, so holding one nearly always means holding those before it: engines
evict a chain from its end. The last one held is found by halving, in ten looks for a prompt of a thousand blocks; where
an engine has evicted from the middle, the answer is a guess, and the executor computes what it lacks.

An executor's set holds at most `max_blocks`: what it holds beyond is not known here, and neither is what follows on
that, until events say that others have gone. Nothing that is known is evicted for something newer, since the oldest
blocks are the beginnings of prompts that are still in use.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

from weir.inference.v1.kv_event_pb2 import BlocksRemoved, BlocksStored, KvEvent
from weir.kvstore.v1.block_hash import split_hashes
from weir_chassis.kv_events.wire import Source


@dataclass(slots=True)
class _Executor:
    # By tier; no entry without blocks.
    tiers: dict[str, set[bytes]] = field(default_factory=dict)
    # It holds blocks that are not in here.
    incomplete: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.tiers.values()))

    def holds(self, block_hash: bytes) -> bool:
        return any(block_hash in held for held in self.tiers.values())


class PrefixIndex:
    """A `kv_events.follower.Consumer`; an executor is named by the address at which others know it."""

    def __init__(self, max_blocks: int, observe: Callable[[int, int], None] = lambda _executors, _blocks: None) -> None:
        """`max_blocks`: of one executor. `observe` is told how many of either are known, at each change."""
        assert max_blocks > 0, max_blocks
        self._max_blocks, self._observe = max_blocks, observe
        self._executors: dict[str, _Executor] = {}  # as many as are followed
        self._blocks = 0

    @property
    def executors(self) -> Set[str]:
        """Those of which it is known what they hold."""
        return self._executors.keys()

    def leading_blocks(self, block_hashes: Sequence[bytes]) -> dict[str, int]:
        """How many of a prompt's blocks, from the first on, each executor holds that has said what it holds."""
        if not block_hashes:
            return dict.fromkeys(self._executors, 0)
        return {address: _leading(block_hashes, known) for address, known in self._executors.items()}

    def reset(self, source: Source) -> None:
        self._drop(source.name)
        self._executors[source.name] = _Executor()
        self._tell()

    def apply(self, source: Source, events: Sequence[KvEvent]) -> None:
        known = self._executors[source.name]
        before = len(known)
        for event in events:
            match event.WhichOneof("event"):
                case "stored":
                    self._store(known, event.stored)
                case "removed":
                    _remove(known, event.removed)
                case "cleared":
                    known.tiers.pop(event.cleared.tier, None)
        self._blocks += len(known) - before
        self._tell()

    def lost(self, source: Source) -> None:
        self._drop(source.name)
        self._tell()

    def _store(self, known: _Executor, event: BlocksStored) -> None:
        room = self._max_blocks - len(known)
        hashes = split_hashes(event.block_hashes)
        # A block whose parent is not in here would never be found, or be found as if its parent were.
        if known.incomplete and event.parent_block_hash and not known.holds(event.parent_block_hash):
            return
        if len(hashes) > room:
            known.incomplete = True
            hashes = hashes[: max(0, room)]
        if hashes:
            known.tiers.setdefault(event.tier, set()).update(hashes)

    def _drop(self, address: str) -> None:
        self._blocks -= len(self._executors.pop(address, ()))

    def _tell(self) -> None:
        self._observe(len(self._executors), self._blocks)


def _remove(known: _Executor, event: BlocksRemoved) -> None:
    held = known.tiers.get(event.tier)
    if held is None:
        return
    held.difference_update(split_hashes(event.block_hashes))
    if not held:
        del known.tiers[event.tier]


def _leading(block_hashes: Sequence[bytes], known: _Executor) -> int:
    # Most executors hold nothing of a prompt, and are to be asked no more than that.
    tiers = known.tiers.values()
    first = block_hashes[0]
    for held in tiers:
        if first in held:
            break
    else:
        return 0
    if len(tiers) == 1:
        return bisect_left(block_hashes, True, key=lambda block_hash: block_hash not in held)
    return bisect_left(block_hashes, True, key=lambda block_hash: not known.holds(block_hash))
