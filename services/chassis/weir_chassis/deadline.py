"""The gRPC deadline is the only clock of a request; each hop passes on what is left."""

from __future__ import annotations

from typing import Protocol

from weir_chassis.errors import DeadlineExceeded


class HasDeadline(Protocol):
    """What a servicer context and a client's call have in common."""

    def time_remaining(self) -> float | None: ...


def time_left(context: HasDeadline) -> float | None:
    """Seconds until the caller gives up; None when it never does. Never negative."""
    left = context.time_remaining()
    return None if left is None else max(0.0, left)


def hop_timeout(left: float | None, *, reserve: float = 0.0, limit: float | None = None) -> float | None:
    """The timeout for the next hop: what is left, less `reserve` seconds to answer in, and never more than `limit`.

    Raises DeadlineExceeded when nothing is left, so that a call which cannot succeed is not made.
    """
    assert reserve >= 0.0, reserve
    if left is None:
        return limit
    if left <= reserve:
        raise DeadlineExceeded("no time is left for the next hop")
    return left - reserve if limit is None else min(left - reserve, limit)


def next_hop(context: HasDeadline, *, reserve: float = 0.0, limit: float | None = None) -> float | None:
    """`hop_timeout` of what this call has left: `stub.Method(request, timeout=next_hop(context))`."""
    return hop_timeout(time_left(context), reserve=reserve, limit=limit)
