"""Whether a place works, and I/O that takes no longer than it may."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from weir_chassis.breaker import Breaker
from weir_chassis.telemetry import get_logger

T = TypeVar("T")

_CLOSE_SECONDS: Final = 5.0  # for what still runs at the end; threads that hang in the kernel are left behind


class Health:
    """Whether one kind of work goes well, and why it does not."""

    def __init__(self, what: str, breaker: Breaker) -> None:
        self.what = what
        self._breaker = breaker
        self._last = ""

    @property
    def fault(self) -> str:
        """What is wrong now; empty when nothing is."""
        return self._last if self._breaker.open else ""

    @property
    def rests(self) -> bool:
        """Whether it has failed and is not to be tried now."""
        return self._breaker.rests

    def allows(self) -> bool:
        return self._breaker.allows()

    def succeeded(self) -> None:
        self._breaker.succeeded()

    def failed(self, error: OSError) -> None:
        self._last = f"{self.what}: {error}"
        self._breaker.failed()


class TimedIo:
    """Runs the I/O of one tier.

    A thread that hangs in the kernel cannot be called back. So what takes too long has failed for its caller, and goes
    on by itself, with all that it holds, until it is done.
    """

    def __init__(self, tier: str) -> None:
        self._tier = tier
        self._under_way: set[asyncio.Task[Any]] = set()

    async def run(self, health: Health, work: Coroutine[Any, Any, T], *, seconds: float) -> T | None:
        """The work's result; None when it raises OSError or takes longer than this."""
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=seconds)
        try:
            if not done:
                raise TimeoutError(f"it takes more than {seconds:g} s")
            result = task.result()
        except OSError as error:
            health.failed(error)
            get_logger().warning("tier_failed", tier=self._tier, what=health.what, error=str(error))
            return None
        health.succeeded()
        return result

    async def close(self) -> None:
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_CLOSE_SECONDS)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more
