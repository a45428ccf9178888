"""The one failure that only workers outside the suite have."""

from __future__ import annotations

from weir_chassis.errors import WorkerLost


class Away(WorkerLost):
    """It cannot be reached, or takes nothing from us: no request is sent there until a probe succeeds."""
