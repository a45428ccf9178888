"""What may be tried again. Pure."""

from __future__ import annotations

from weir_chassis.errors import Fault, NotFound, WeirError

# The first, and one more on another worker: a request that kills workers must not kill the fleet.
MAX_ATTEMPTS = 2


def may_retry(error: WeirError, attempt: int, *, answering: bool) -> bool:
    """Whether another worker may be tried after `error` ended attempt number `attempt` (from 1).

    Only before the client is sent anything of an answer, and only for what another worker may do better: a fault of the
    server's, a worker that drains, a worker that has no room, and one that has just unloaded the adapter which it was
    believed to have. What the client did wrong is as wrong elsewhere.
    """
    return not answering and attempt < MAX_ATTEMPTS and another_may_do_better(error)


def another_may_do_better(error: WeirError) -> bool:
    """Whether the fault is this worker's, and not the request's."""
    return isinstance(error, NotFound) or (error.row.retryable and error.row.fault is not Fault.CLIENT)
