"""Asked for together, answered together; whoever goes away takes nobody's answer along."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from weir_kvstore.tiers.together import Together


class Asked:
    """Answers ten times the key, and nothing to odd ones; remembers who came together."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, keys: Sequence[int]) -> list[int | None]:
        self.calls.append(list(keys))
        await self.gate.wait()
        return [None if key % 2 else 10 * key for key in keys]


async def test_one_turn_is_one_call() -> None:
    asked = Asked()
    together = Together(asked)
    assert await asyncio.gather(*(together.get(key) for key in (1, 2, 4))) == [None, 20, 40]
    assert await together.get(6) == 60
    assert asked.calls == [[1, 2, 4], [6]]


async def test_a_call_has_a_bound() -> None:
    asked = Asked()
    together = Together(asked)
    assert await asyncio.gather(*(together.get(2 * key) for key in range(40))) == [20 * key for key in range(40)]
    assert [len(call) for call in asked.calls] == [16, 16, 8]


async def test_who_goes_away_takes_nothing_along() -> None:
    asked = Asked()
    together = Together(asked)
    asked.gate.clear()
    gone, stays = asyncio.ensure_future(together.get(2)), asyncio.ensure_future(together.get(4))
    await asyncio.sleep(0.01)
    gone.cancel()
    asked.gate.set()
    assert await stays == 40
    assert gone.cancelled()


async def test_closing_answers_whoever_still_waits() -> None:
    asked = Asked()
    together = Together(asked)
    asked.gate.clear()
    waits = asyncio.ensure_future(together.get(2))
    await asyncio.sleep(0.01)
    await together.close()
    assert await waits is None
