"""One source's own `WatchKvEvents` call → whoever wants to know what it holds: for where there is no bus.

The call is asked to go on where the last one ended. A number that is jumped over, or another epoch without a reset, is
a gap: what was known is void, and the next call begins with a snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Sequence
from typing import Final, Protocol

from weir.inference.v1.kv_event_pb2 import KvEvent
from weir_chassis.errors import Internal
from weir_chassis.kv_events.blocks import num_blocks
from weir_chassis.kv_events.follower import Consumer
from weir_chassis.kv_events.wire import Source

# What is handed on in one turn of the event loop, some 2 ms; a snapshot of a million blocks takes several hundred.
_TURN_BLOCKS: Final = 4096


class Told(Protocol):
    """A `WatchKvEventsResponse`, of an executor or a kvstore."""

    @property
    def epoch(self) -> int: ...

    @property
    def sequence(self) -> int: ...

    @property
    def events(self) -> Sequence[KvEvent]: ...


class KvEventWatch:
    """`epoch` and `from_sequence` are what the next call asks for; None: a snapshot."""

    def __init__(self, source: Source, consumer: Consumer) -> None:
        self._source, self._consumer = source, consumer
        self.epoch: int | None = None
        self._sequence = 0

    @property
    def from_sequence(self) -> int | None:
        return None if self.epoch is None else self._sequence + 1

    async def follow(self, call: AsyncIterable[Told]) -> None:
        """Until the call ends, with its error. Raises Internal on a gap; what was known is then void, and lost."""
        async for told in call:
            await self._take(told)

    def forget(self) -> None:
        """The source is gone, or nothing is known of it any more."""
        self.epoch, self._sequence = None, 0
        self._consumer.lost(self._source)

    async def _take(self, told: Told) -> None:
        events = list(told.events)
        if events and events[0].HasField("reset"):
            self._consumer.reset(self._source)
            events = events[1:]
        elif told.epoch != self.epoch or told.sequence - len(events) != self._sequence:
            self.forget()
            raise Internal(f"{self._source.name} has left out KV events before number {told.sequence}")
        # Only when all of it is known may a later call go on from there.
        self.epoch = None
        for part in _turns(events):
            self._consumer.apply(self._source, part)
            await asyncio.sleep(0)
        self.epoch, self._sequence = told.epoch, told.sequence


def _turns(events: Sequence[KvEvent]) -> Sequence[Sequence[KvEvent]]:
    parts: list[list[KvEvent]] = [[]]
    blocks = 0
    for event in events:
        if blocks >= _TURN_BLOCKS:
            parts.append([])
            blocks = 0
        parts[-1].append(event)
        blocks += num_blocks(event)
    return parts
