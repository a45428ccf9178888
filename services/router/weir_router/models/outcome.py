"""What came of a request, as its target is judged by it. Pure."""

from __future__ import annotations

from asyncio import CancelledError
from dataclasses import dataclass
from enum import Enum

from weir_chassis.errors import Cancelled, DeadlineExceeded, SlowConsumer, WeirError
from weir_chassis.fault_table import Fault


class End(Enum):
    ANSWERED = "answered"
    # The client had an error that was not its own doing, or waited until its deadline.
    FAILED = "failed"
    # It was not begun: no room, too long, a template that fails. A target that refuses what another takes is worse.
    REFUSED = "refused"
    # By the client itself, which says nothing of the target but how long it had waited.
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Outcome:
    end: End
    # From the call's start to the first delta; of a request that had none: so long at least. None: it says nothing.
    ttft_seconds: float | None


def outcome_of(
    error: BaseException | None,
    *,
    accepted: bool,
    ttft_seconds: float | None,
    waited: float,
    left_seconds: float | None = None,
) -> Outcome:
    """`accepted`: the client was told so. `waited`: seconds from the start until now; `left_seconds`: of its deadline.

    A client whose deadline passes cancels its call, which may be seen here before our own clock says so.
    """
    if isinstance(error, CancelledError) and left_seconds is not None and left_seconds <= _deadline_margin(waited):
        return Outcome(End.FAILED, ttft_seconds)
    if error is None:
        return Outcome(End.ANSWERED, ttft_seconds)
    if not isinstance(error, Exception) or isinstance(error, (Cancelled, SlowConsumer)):
        return Outcome(End.LEFT, waited if ttft_seconds is None else ttft_seconds)
    if accepted or _is_failure(error):
        return Outcome(End.FAILED, ttft_seconds)
    return Outcome(End.REFUSED, ttft_seconds)


def _deadline_margin(waited: float) -> float:
    """Seconds by which two clocks may differ on when a deadline passes: what a call takes to come here, and a bit."""
    return 0.05 + 0.02 * waited


def _is_failure(error: Exception) -> bool:
    """Not one of ours: a bug."""
    if isinstance(error, WeirError):
        return error.row.fault is Fault.SERVER or isinstance(error, DeadlineExceeded)
    return True
