"""What an error means: to the request, to the worker and to the bill. One table, which all three read. Pure.

    reason, where  ─ TABLE ─  elsewhere?   may another worker do better
                               counts?      against the worker, towards its ejection
                               charged?     against the retry budget, when it is tried elsewhere
                               billed?      the tokens that the client was given

Whose fault a reason is stands in `weir_chassis.fault_table.TABLE`. Only the server's faults count against a worker, so
no client, no deadline, no overload and no drain can eject one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from weir.inference.v1.error_pb2 import ErrorReason
from weir_chassis.errors import WeirError
from weir_chassis.fault_table import TABLE as REASONS
from weir_chassis.fault_table import Fault


class Where(Enum):
    """At which point of a request, and how, an error came to be known."""

    # The worker could not be given the request: nobody has said anything about it there.
    CONNECTION = "connection"
    BEFORE_FIRST_TOKEN = "before_first_token"  # noqa: S105  # no password
    AFTER_FIRST_TOKEN = "after_first_token"  # noqa: S105
    # The worker owed an answer and was silent for longer than it may be.
    STALL = "stall"
    # The worker had said that it takes nothing new, and went.
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Verdict:
    # Tried again before the first token; gone on with after it.
    elsewhere: bool
    counts: bool
    charged: bool
    billed: bool


# Not the request's doing, and yet no fault that comes and goes: a worker lacks what it was believed to have.
_LACKING = frozenset(
    {
        ErrorReason.ERROR_REASON_NOT_FOUND,  # the adapter was unloaded a moment ago
        ErrorReason.ERROR_REASON_MODEL_NOT_FOUND,  # or the model
        ErrorReason.ERROR_REASON_REVISION_MISMATCH,  # or it was replaced
    }
)

# Ends that a client brings about itself, or for which it set the time: it pays for what it was given.
_CLIENTS_END = frozenset(
    {
        ErrorReason.ERROR_REASON_CANCELLED,
        ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED,
        ErrorReason.ERROR_REASON_SLOW_CONSUMER,
        ErrorReason.ERROR_REASON_QUOTA_EXCEEDED,
    }
)

# Says that there is nobody, which no worker has said.
_NOBODYS = frozenset({ErrorReason.ERROR_REASON_NO_WORKER})


def _after_first_token(reason: ErrorReason.ValueType) -> Verdict:
    row = REASONS[reason]
    return Verdict(
        elsewhere=reason in _LACKING or (row.retryable and row.fault is not Fault.CLIENT),
        counts=row.fault is Fault.SERVER and reason not in _NOBODYS,
        # A drain is planned: as many requests move as the worker had, each of them once, and no storm can come of it.
        charged=reason != ErrorReason.ERROR_REASON_DRAINING,
        billed=reason in _CLIENTS_END,
    )


def _verdict(reason: ErrorReason.ValueType, where: Where) -> Verdict:
    verdict = _after_first_token(reason)
    match where:
        case Where.AFTER_FIRST_TOKEN:
            return verdict
        case Where.BEFORE_FIRST_TOKEN:
            return replace(verdict, billed=False)
        case Where.CONNECTION:
            # Who cannot be reached is down, which its link sees; ejected are those that answer, and wrongly.
            return replace(verdict, counts=False, billed=False)
        case Where.DRAIN:
            return replace(verdict, counts=False, charged=False)
        case Where.STALL if reason == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED:
            # The router's own timer for the worker, which the client has not set.
            return _verdict(ErrorReason.ERROR_REASON_WORKER_LOST, where)
        case Where.STALL:
            return verdict


TABLE: Mapping[tuple[ErrorReason.ValueType, Where], Verdict] = {
    (reason, where): _verdict(reason, where) for reason in REASONS for where in Where
}


def verdict(error: WeirError, where: Where) -> Verdict:
    return TABLE[error.reason, where]


def before_or_after(*, answering: bool) -> Where:
    """`answering`: the client is being sent what another try could only repeat."""
    return Where.AFTER_FIRST_TOKEN if answering else Where.BEFORE_FIRST_TOKEN
