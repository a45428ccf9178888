"""What a local tier is told: how much, who goes first, and how long anybody stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from weir_kvstore.policies.admission import Admission, AdmitAll
from weir_kvstore.policies.lru import Lru
from weir_kvstore.policies.policy import EvictionPolicy
from weir_kvstore.tenants import Quotas


@dataclass(frozen=True, slots=True)
class Rules:
    """What this tier may hold, who goes first, and how long anybody stays. May be changed while it runs."""

    max_blocks: int  # records in the index, some 700 bytes each: payloads may be tiny
    max_bytes: int | None = None  # None: as much as its slots have
    ttl_seconds: float | None = None  # from when it was stored here; None: for ever
    policy: str = "lru"  # what it is called
    new_policy: Callable[[], EvictionPolicy] = Lru
    # Asked by whoever puts into the tier, and told what had to go.
    admission: Admission = field(default_factory=AdmitAll)
    quotas: Quotas = field(default_factory=Quotas)
    max_staged_bytes: int | None = None  # of what is not committed, which may push out no more than this
    io_seconds: float = 5.0  # what takes longer counts as failed
