"""What something holds, as a log that can be followed.

    events   1  2  3 │ 4  5  6  7  8        the newest are remembered, the older only as what they left behind
    held     { all that is there after 8 }  for a follower that must start anew: a reset, and then all of this

A follower is a position in the log, not a queue: one that falls behind costs nothing, and gets a reset when its
position is no longer remembered. Nothing is skipped in silence.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Final, Generic, Protocol, TypeVar

E = TypeVar("E")

# What a snapshot tells of in one turn of the event loop, some 2 ms; a million blocks take several hundred turns.
_TURN_SIZE: Final = 4096


def new_epoch(random: Random) -> int:
    """One number per incarnation of a source. Not 0, which is what an unset field reads as."""
    return random.getrandbits(64) | 1


class Held(Protocol[E]):
    """What the events so far have left behind."""

    def apply(self, event: E) -> None: ...

    def snapshot(self) -> Iterator[E]:
        """Events that tell of all that is held at the moment of this call, however late they are drawn."""
        ...

    def size_of(self, event: E) -> int:
        """How much the event tells of; at least 1, so that every event takes room."""
        ...


@dataclass(frozen=True, slots=True)
class Batch(Generic[E]):
    """Events up to number `sequence`. After a `reset`, they are all that is held, and what came before is void."""

    sequence: int
    events: Sequence[E]
    reset: bool = False


class EventLog(Generic[E]):
    """Numbers events from 1 within one `epoch`. Used from one event loop."""

    def __init__(self, epoch: int, capacity: int, held: Held[E]) -> None:
        """Remembers the newest events, as many as tell of `capacity` things: one event may tell of thousands."""
        assert capacity > 0, capacity
        self.epoch = epoch
        self.sequence = 0  # of the newest event
        self._capacity = capacity
        self._recent: deque[E] = deque()
        self._recent_size = 0
        self._held = held
        self._changed = asyncio.Event()
        self.closed: Exception | None = None  # with what `close` was called

    def append(self, events: Sequence[E]) -> None:
        for event in events:
            self._held.apply(event)
            self._recent.append(event)
            self._recent_size += self._held.size_of(event)
        self.sequence += len(events)
        while self._recent_size > self._capacity:
            self._recent_size -= self._held.size_of(self._recent.popleft())
        if events:
            self._announce()

    def close(self, error: Exception) -> None:
        """Ends every follower, now and later, with this error."""
        self.closed = error
        self._announce()

    async def follow(
        self, epoch: int | None = None, from_sequence: int | None = None
    ) -> AsyncGenerator[Batch[E], None]:
        """What `read` gives, and then what happens, as it happens. Ends only with the error of `close`."""
        while True:
            batch = await self.read(epoch, from_sequence)
            epoch, from_sequence = self.epoch, batch.sequence + 1
            if batch.events or batch.reset:
                yield batch
            await self.happened(from_sequence)

    async def read(self, epoch: int | None, from_sequence: int | None) -> Batch[E]:
        """The events from number `from_sequence` of this epoch on, none if it is the next to come; or, where it is
        neither that nor remembered, a reset with all that is held. Raises the error of `close`.
        """
        if self.closed is not None:
            raise self.closed
        if epoch == self.epoch and from_sequence is not None:
            events = self.remembered(max(1, from_sequence))
            if events is not None:
                return Batch(self.sequence, events)
        return await self._snapshot()

    def remembered(self, position: int) -> list[E] | None:
        """The events from number `position` on. None when one of them is not remembered, or position is yet to come."""
        oldest = self.sequence - len(self._recent) + 1
        if not oldest <= position <= self.sequence + 1:
            return None
        return list(islice(self._recent, position - oldest, None))

    async def happened(self, position: int) -> None:
        """Returns when there is an event of this number. Raises the error of `close`."""
        while self.closed is None:
            changed = self._changed
            if self.sequence >= position:
                return
            await changed.wait()
        raise self.closed

    async def _snapshot(self) -> Batch[E]:
        sequence, events, size = self.sequence, list[E](), 0
        for event in self._held.snapshot():
            events.append(event)
            size += self._held.size_of(event)
            if size >= _TURN_SIZE:
                size = 0
                await asyncio.sleep(0)
        return Batch(sequence, events, reset=True)

    def _announce(self) -> None:
        # Each change retires the event that followers wait on, so that none is missed and none has to be cleared.
        self._changed.set()
        self._changed = asyncio.Event()
