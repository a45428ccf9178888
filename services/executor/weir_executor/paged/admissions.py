"""How one step's admissions went, and what that says to each sequence that still waits. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from weir_executor.engine import WaitingReason
from weir_executor.paged.room import OF_TENANT
from weir_executor.paged.sequence import Sequence

# Sequences that stand back are looked at again in every step: more than these would cost more than they save.
MAX_DEFERRED = 64
# What everybody is short of, and not only the first in line.
_OF_ALL = frozenset({WaitingReason.NO_SLOT, WaitingReason.NO_TOKENS})


@dataclass(slots=True)
class Admissions:
    """Whom they passed over and why, and where they ended."""

    deferred: dict[Sequence, WaitingReason] = field(default_factory=dict)
    tenants: dict[str, WaitingReason] = field(default_factory=dict)  # passed over as a whole
    end: WaitingReason | None = None
    first: Sequence | None = None  # whom they ended at

    def note(self, sequence: Sequence, reason: WaitingReason | None) -> None:
        """It runs (None), or was not admitted for a reason.

        Others pass one that stands back, or whose tenant is short of its own. Whoever is first in line and does not fit
        keeps the others waiting: a long prompt must not starve.
        """
        if reason is WaitingReason.SHARED_PREFIX and len(self.deferred) < MAX_DEFERRED:
            self.deferred[sequence] = reason
        elif reason in OF_TENANT:
            self.tenants[sequence.tenant] = reason
        elif reason is not None:
            self.end, self.first = reason, sequence

    def why(self, sequence: Sequence) -> WaitingReason:
        """Why this one, which waits, was not admitted."""
        if sequence.preempted:
            return WaitingReason.PREEMPTED
        own = self.deferred.get(sequence) or self.tenants.get(sequence.tenant)
        if own is not None:
            return own
        if self.end is None:
            return WaitingReason.NEW
        return self.end if self.end in _OF_ALL or sequence is self.first else WaitingReason.BEHIND_ANOTHER
