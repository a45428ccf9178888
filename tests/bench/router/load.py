"""A closed loop of clients at one door, and what they heard: each sends a request when its last one is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from bench.router import clock_token


@dataclass(slots=True)
class Heard:
    """What came while `counting`. Times are seconds."""

    counting: bool = False
    requests: int = 0
    tokens: int = 0
    first_tokens: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)  # of tokens, from drawn to heard

    def on_tokens(self, token_ids: Iterable[int]) -> None:
        if self.counting:
            now_ns = time.monotonic_ns()
            ages = [clock_token.age_seconds(token_id, now_ns) for token_id in token_ids]
            self.delays += ages
            self.tokens += len(ages)


class Door(Protocol):
    """Where a client sends its requests."""

    async def answer(self, tokens: int, heard: Heard) -> float:
        """One request, whose answer has so many tokens, to its end. Returns the seconds to the first of them."""
        ...


@asynccontextmanager
async def clients(door: Door, count: int, tokens: int, *, stagger: float, pause: float) -> AsyncIterator[Heard]:
    """`count` clients, begun over `stagger` seconds; each waits `pause` seconds between two requests."""
    heard = Heard()

    async def client(index: int) -> None:
        await asyncio.sleep(stagger * index / count)
        while True:
            first = await door.answer(tokens, heard)
            if heard.counting:
                heard.requests += 1
                heard.first_tokens.append(first)
            await asyncio.sleep(pause)

    async with asyncio.TaskGroup() as group:  # one that fails ends the run
        tasks = [group.create_task(client(index)) for index in range(count)]
        yield heard
        for task in tasks:
            task.cancel()
