"""What all executions of a router share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from weir_router.faults.retries import Retries
from weir_router.metrics import RouterMetrics
from weir_router.prefill_queue import PrefillQueue
from weir_router.routing import Routing


@dataclass(frozen=True, slots=True)
class ExecutionLimits:
    """`disaggregate_tokens`: from so many on, a prompt is computed by an executor that is there for that.

    `max_continuations`: after the first token. `wait_seconds`: for a worker to go on with, when none is there.
    """

    disaggregate_tokens: int
    max_continuations: int
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What all executions share."""

    routing: Routing
    prefill_queue: PrefillQueue | None
    retries: Retries
    limits: ExecutionLimits
    metrics: RouterMetrics
    # Of attempts, so that no stream is ever given a handle twice.
    handles: Iterator[int] = field(default_factory=partial(count, 1))
