"""Who shares the engine: what each tenant may hold, what it holds now, and whose turn it is. Pure.

Turns are those of the virtual token counter (VTC: Sheng et al., "Fairness in Serving Large Language Models",
arXiv:2401.00588): each tenant has a counter of the tokens computed for it, by weight, and the lowest counter goes
first. Between two tenants that always have work, the counters never drift further apart than one batch holds.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

# Stands for every tenant that is not named.
ANY_TENANT = "*"
# A generated token costs a step's row, a prompt token a part of one: the paper's own rates.
_PROMPT_COST, _GENERATED_COST = 1.0, 2.0
# Counters of tenants without a request. One that is forgotten comes back at the least active counter, as a new one
# does: it loses nothing, and the others at most what it had been ahead.
_MAX_IDLE = 1024


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """One tenant's share and quotas. A quota that is None is the engine's own."""

    weight: float = 1.0  # tokens computed for it, relative to others that want as much
    max_num_seqs: int | None = None  # sequences running at once
    max_blocks: int | None = None  # KV blocks held by running sequences; one that two of them share counts twice

    def __post_init__(self) -> None:
        assert self.weight > 0, self
        assert self.max_num_seqs is None or self.max_num_seqs > 0, self
        assert self.max_blocks is None or self.max_blocks > 0, self


@dataclass(frozen=True, slots=True)
class Tenants:
    """Limits by name; `*` are those of each tenant that is not named."""

    limits: Mapping[str, TenantLimits] = field(default_factory=dict)

    def of(self, tenant: str) -> TenantLimits:
        return self.limits.get(tenant) or self.limits.get(ANY_TENANT) or _UNLIMITED


_UNLIMITED = TenantLimits()


class TenantUse:
    """Slots and blocks that each tenant's running sequences hold. An entry of zeros is no entry."""

    def __init__(self) -> None:
        self.slots: Counter[str] = Counter()
        self.blocks: Counter[str] = Counter()

    def add(self, tenant: str, *, slots: int = 0, blocks: int = 0) -> None:
        for counts, change in ((self.slots, slots), (self.blocks, blocks)):
            counts[tenant] += change
            assert counts[tenant] >= 0, (tenant, counts)
            if not counts[tenant]:
                del counts[tenant]


class FairShare:
    """The counters. A tenant is active while it has a live request."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._live: Counter[str] = Counter()
        self._active: dict[str, float] = {}
        self._idle: OrderedDict[str, float] = OrderedDict()  # least recently active first
        self._last_left = 0.0

    def enter(self, tenant: str) -> None:
        """One more live request. A tenant that was away gets no credit for that: it starts at the least active counter,
        or where the last one left when there is none."""
        self._live[tenant] += 1
        if self._live[tenant] == 1:
            floor = min(self._active.values(), default=self._last_left)
            self._active[tenant] = max(self._idle.pop(tenant, 0.0), floor)

    def leave(self, tenant: str) -> None:
        """One live request less."""
        self._live[tenant] -= 1
        if self._live[tenant]:
            return
        del self._live[tenant]
        self._last_left = self._idle[tenant] = self._active.pop(tenant)
        if len(self._idle) > _MAX_IDLE:
            self._idle.popitem(last=False)

    def charge(self, tenant: str, *, prompt: int = 0, generated: int = 0) -> None:
        """Tokens that are computed for it. What is computed again after a preemption is not its doing, and is free."""
        cost = prompt * _PROMPT_COST + generated * _GENERATED_COST
        self._active[tenant] += cost / self._tenants.of(tenant).weight

    def counter(self, tenant: str) -> float:
        """Of an active tenant: the lower, the sooner its turn."""
        return self._active[tenant]
