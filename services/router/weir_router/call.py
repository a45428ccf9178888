"""One call that is answered at once, by whichever executor is chosen: not a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from weir_chassis.clock import Clock
from weir_chassis.errors import Cancelled, WeirError, WorkerLost
from weir_router.regions import Residency

T = TypeVar("T")


@dataclass(slots=True)
class Call(Generic[T]):
    """`expires_at` is None when it may go on for ever."""

    request: T
    request_id: str
    tenant: str
    residency: Residency
    clock: Clock
    expires_at: float | None
    # Its number among those for its model, once that is known.
    turn: int = 0

    def left_seconds(self) -> float | None:
        return None if self.expires_at is None else max(0.0, self.expires_at - self.clock.monotonic())


def explain(error: WeirError, address: str) -> WeirError:
    """A client's own cancellation ends our task and is never seen as a status: this one is the worker's."""
    if isinstance(error, (WorkerLost, Cancelled)):
        return WorkerLost(f"executor {address} was lost: {error.message}", metadata={"worker": address})
    return error
