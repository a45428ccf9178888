"""What the engine's pool of KV blocks holds, as a log that can be followed.

    events   1  2  3 │ 4  5  6  7  8        the newest are remembered, the older only as what they left behind
    held     { blocks after event 8 }       for a follower that must start anew: a reset, and then all of this

A follower is a position in the log, not a queue: one that falls behind costs nothing, and gets a reset when its
position is no longer remembered. Nothing is skipped in silence.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from weir_executor.engine import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent


@dataclass(frozen=True, slots=True)
class KvBatch:
    """Events up to number `sequence`. After a `reset`, they are all that is held, and what came before is void."""

    sequence: int
    events: Sequence[KvEvent]
    reset: bool = False


class KvEventLog:
    """Numbers events from 1 within one `epoch`. Used from one event loop."""

    def __init__(self, epoch: int, capacity: int) -> None:
        """Remembers the newest events, as many as tell of `capacity` blocks: one event may tell of thousands."""
        assert capacity > 0, capacity
        self.epoch = epoch
        self.sequence = 0  # of the newest event
        self._capacity = capacity
        self._recent: deque[KvEvent] = deque()
        self._recent_blocks = 0  # that the events in `_recent` tell of
        # Block → parent, as many as the pool holds; in the order of arrival, so that chains mostly stand in a row.
        self._held: dict[bytes, bytes] = {}
        self._changed = asyncio.Event()
        self._closed: Exception | None = None

    def __len__(self) -> int:
        """How many blocks are held."""
        return len(self._held)

    def append(self, events: Sequence[KvEvent]) -> None:
        for event in events:
            self._apply(event)
            self._recent.append(event)
            self._recent_blocks += _blocks_of(event)
        self.sequence += len(events)
        while self._recent_blocks > self._capacity:
            self._recent_blocks -= _blocks_of(self._recent.popleft())
        if events:
            self._announce()

    def close(self, error: Exception) -> None:
        """Ends every follower, now and later, with this error."""
        self._closed = error
        self._announce()

    async def follow(self, epoch: int | None = None, from_sequence: int | None = None) -> AsyncGenerator[KvBatch, None]:
        """First a reset with all that is held; or, when event `from_sequence` of this epoch is still remembered or is
        the next to come, the events from that one on. Then what happens, as it happens. Ends only with the error of
        `close`.
        """
        known = epoch == self.epoch and from_sequence is not None
        position = max(1, from_sequence) if known and from_sequence is not None else None  # of the next event to tell
        while self._closed is None:
            changed = self._changed
            if position is None or not self._oldest <= position <= self.sequence + 1:
                batch = KvBatch(self.sequence, self._snapshot(), reset=True)
            elif position <= self.sequence:
                batch = KvBatch(self.sequence, list(islice(self._recent, position - self._oldest, None)))
            else:
                await changed.wait()
                continue
            position = batch.sequence + 1
            yield batch
        raise self._closed

    @property
    def _oldest(self) -> int:
        """The number of the oldest event that is remembered; of the next one, when none is."""
        return self.sequence - len(self._recent) + 1

    def _apply(self, event: KvEvent) -> None:
        if isinstance(event, BlockStored):
            parent = event.parent_block_hash
            for block_hash in event.block_hashes:
                self._held[block_hash] = parent
                parent = block_hash
        elif isinstance(event, BlockRemoved):
            for block_hash in event.block_hashes:
                self._held.pop(block_hash, None)
        else:
            assert isinstance(event, AllBlocksCleared), event
            self._held.clear()

    def _snapshot(self) -> list[KvEvent]:
        """All that is held, one event for each run of blocks in which each is the parent of the next."""
        return [BlockStored(run, self._held[run[0]]) for run in self._runs()]

    def _runs(self) -> Iterator[list[bytes]]:
        run: list[bytes] = []
        for block_hash, parent in self._held.items():
            if run and parent != run[-1]:
                yield run
                run = []
            run.append(block_hash)
        if run:
            yield run

    def _announce(self) -> None:
        # Each change retires the event that followers wait on, so that none is missed and none has to be cleared.
        self._changed.set()
        self._changed = asyncio.Event()


def _blocks_of(event: KvEvent) -> int:
    """How many blocks the event tells of; at least one, so that every event takes room."""
    return 1 if isinstance(event, AllBlocksCleared) else max(1, len(event.block_hashes))
