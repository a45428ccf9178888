"""When whoever asked stops waiting, as a worker thread looks at it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from weir_chassis.clock import Clock
from weir_chassis.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """When the caller gives up, by the clock's monotonic seconds; None when it never does."""

    at: float | None
    clock: Clock

    @classmethod
    def after(cls, left_seconds: float | None, clock: Clock) -> Self:
        return cls(None if left_seconds is None else clock.monotonic() + left_seconds, clock)

    def check(self) -> None:
        """Raises DeadlineExceeded when nobody waits any more."""
        self.left(math.inf)

    def left(self, limit: float) -> float:
        """Seconds left, at most `limit`. Raises DeadlineExceeded when there are none."""
        left = limit if self.at is None else min(limit, self.at - self.clock.monotonic())
        if left <= 0:
            raise DeadlineExceeded("the deadline passed while the request waited to be encoded")
        return left
