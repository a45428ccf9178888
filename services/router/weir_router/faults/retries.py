"""Whether a request that failed is tried again: as the table says, so often at most, and while the budget lasts."""

from __future__ import annotations

from enum import Enum

from weir_chassis.clock import Clock
from weir_chassis.errors import WeirError, reason_name
from weir_router.faults.budget import RetryBudget
from weir_router.faults.table import Where, verdict
from weir_router.metrics import RouterMetrics

# The first, and one more on another worker: a request that kills workers must not kill the fleet.
MAX_ATTEMPTS = 2


class Extra(Enum):
    """What an extra try is for."""

    # From the beginning, because the client has been given nothing yet.
    RETRY = "retry"
    # After the tokens that the client has been given.
    CONTINUATION = "continuation"
    # Beside another that may still answer.
    HEDGE = "hedge"


class Retries:
    """One budget for all extra tries of this router."""

    def __init__(self, budget: RetryBudget, clock: Clock, metrics: RouterMetrics):
        self._budget, self._clock, self._metrics = budget, clock, metrics

    def note_request(self) -> None:
        """A client's request has come, and pays for a part of a try."""
        self._budget.note_request(self._clock.monotonic())
        self._show()

    def may_retry(
        self,
        error: WeirError,
        where: Where,
        attempt: int = 1,
        *,
        max_attempts: int = MAX_ATTEMPTS,
        extra: Extra = Extra.RETRY,
        charged: bool = True,
    ) -> bool:
        """Whether another worker is to be tried after `error` ended attempt number `attempt` (from 1).

        A yes is taken out of the budget: ask when the try is about to be made. `charged`: unless it is free.
        """
        found = verdict(error, where)
        if attempt >= max_attempts or not found.elsewhere:
            return False
        return self.allows(extra, reason_name(error.reason), charged=charged and found.charged)

    def allows(self, extra: Extra, reason: str, *, charged: bool = True) -> bool:
        """Whether the budget has one more try; a yes is taken out of it. `reason`: one of a closed list."""
        if charged and not self._budget.take(self._clock.monotonic()):
            self._metrics.refused_retries.labels(extra.value).inc()
            return False
        self._metrics.retries.labels(extra.value, reason).inc()
        self._show()
        return True

    def _show(self) -> None:
        self._metrics.retry_budget.set(max(0, self._budget.left(self._clock.monotonic())))
