"""A stream whose caller stops reading ends: what it holds would wait for nobody."""

from __future__ import annotations

import asyncio
from typing import Any

from weir_chassis.errors import SlowConsumer


async def write_within(context: Any, message: Any, seconds: float) -> None:
    """Writes to the call of a servicer's context. Raises SlowConsumer when it is not taken in time."""
    try:
        async with asyncio.timeout(seconds):
            await context.write(message)
    except TimeoutError:
        raise SlowConsumer(f"a message was not read for {seconds:g} s") from None
