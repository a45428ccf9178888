"""A message bus in memory, as unreliable as one may be: it loses, repeats and reorders, and sessions end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random

from weir_chassis.broker import Deliver, Message
from weir_chassis.inmemory.broker import MAX_PAYLOAD, InMemoryBroker, InMemoryBus

FakeBroker = InMemoryBroker


@dataclass(frozen=True)
class Faults:
    """What becomes of a message for one subscriber, each by this chance; otherwise it arrives, in its turn."""

    lost: float = 0.0
    twice: float = 0.0
    late: float = 0.0


class FakeBus(InMemoryBus):
    """Messages are delivered in the next turn of the event loop, the late ones some messages later."""

    def __init__(self, seed: int = 0, max_payload: int = MAX_PAYLOAD) -> None:
        super().__init__(max_payload)
        self.faults = Faults()
        self.published: list[Message] = []
        self._random = Random(seed)
        self._late: list[tuple[Deliver, Message]] = []

    def publish(self, message: Message) -> None:
        self.published.append(message)
        super().publish(message)

    def send(self, deliver: Deliver, message: Message) -> None:
        loop, chance = asyncio.get_running_loop(), self._random.random
        for _ in range(2 if chance() < self.faults.twice else 1):
            if chance() < self.faults.lost:
                continue
            if chance() < self.faults.late:
                self._late.append((deliver, message))
            else:
                loop.call_soon(deliver, message)
        while self._late and chance() < 0.3:
            late, old = self._late.pop(self._random.randrange(len(self._late)))
            loop.call_soon(late, old)
