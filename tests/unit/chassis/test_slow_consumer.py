from __future__ import annotations

import asyncio

import pytest

from weir_chassis.errors import SlowConsumer
from weir_chassis.slow_consumer import write_within


class Context:
    def __init__(self) -> None:
        self.written: list[object] = []
        self.writable = asyncio.Event()

    async def write(self, message: object) -> None:
        await self.writable.wait()
        self.written.append(message)


async def test_a_message_that_is_taken_in_time_is_written() -> None:
    context = Context()
    context.writable.set()
    await write_within(context, "message", 5.0)
    assert context.written == ["message"]


async def test_one_that_is_not_taken_ends_the_stream() -> None:
    context = Context()
    with pytest.raises(SlowConsumer, match=r"a message was not read for 0\.01 s"):
        await write_within(context, "message", 0.01)
    assert context.written == []
