"""Calls to a store elsewhere: bounded in time, and left alone for a while when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final, TypeVar

from weir_chassis.breaker import Breaker
from weir_chassis.clock import Clock
from weir_chassis.telemetry import get_logger

T = TypeVar("T")

_MAX_FAULT_CHARS: Final = 300  # it stands in every report, and may quote what somebody else has sent


class Refused(Exception):  # noqa: N818  # no error of the store's: it answers, and takes nothing
    """Why it takes nothing. It is asked again as before."""


class StoreLink:
    def __init__(self, store: str, expected: tuple[type[Exception], ...], *, clock: Clock, random: Random) -> None:
        """`expected` is what work raises when the other end fails; anything else is a mistake of ours, and logged."""
        self._store = store
        self._expected = (*expected, OSError)  # a TimeoutError too
        self._breaker = Breaker(clock, random)
        self._failure = ""
        self._refusal = ""

    @property
    def fault(self) -> str:
        """Why it does not answer, or takes nothing. Empty once it does."""
        return self._failure or self._refusal

    async def ask(self, work: Callable[[], Awaitable[T]], *, otherwise: T, seconds: float) -> T:
        """What this work comes to within so many seconds; `otherwise` when it does not. Raises nothing."""
        if not self._breaker.allows():
            return otherwise
        try:
            async with asyncio.timeout(seconds):
                answer = await work()
        except Refused as refusal:
            self._answered()
            self._refusal = str(refusal)[:_MAX_FAULT_CHARS]
            return otherwise
        except Exception as error:
            if not isinstance(error, self._expected):
                get_logger().error("far_store_failed", store=self._store, exc_info=error)
            self._failed(f"no answer within {seconds:g} s" if isinstance(error, TimeoutError) else str(error))
            return otherwise
        self._answered()
        return answer

    def took(self) -> None:
        """It has taken something: whatever it refused before, it refuses no more."""
        self._refusal = ""

    def _answered(self) -> None:
        self._breaker.succeeded()
        if self._failure:
            get_logger().info("far_store_back", store=self._store)
        self._failure = ""

    def _failed(self, failure: str) -> None:
        self._breaker.failed()
        if not self._failure:
            get_logger().warning("far_store_lost", store=self._store, fault=failure)
        self._failure = failure[:_MAX_FAULT_CHARS] or "unknown"
