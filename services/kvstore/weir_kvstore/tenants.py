"""Byte quotas per tenant, and who gives way when there is no room. Pure.

    used ≤ max_bytes   always: charged before a byte is allocated; whoever is at its quota evicts its own blocks
    used > share       goes first, whoever asks
    used ≤ share       loses nothing to another

Shares are by weight among those who hold anything or ask for something now, so they fill the capacity: when a tier is
full, whoever lacks room is over its own share or somebody else is over theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Quota:
    """Of one tenant, in one tier."""

    max_bytes: int | None = None  # None: as much as the tier has
    share: float = 1.0  # weight among the others


@dataclass(frozen=True, slots=True)
class Quotas:
    """Of all tenants, in one tier."""

    by_tenant: Mapping[str, Quota] = field(default_factory=dict)
    others: Quota = Quota()

    def of(self, tenant: str) -> Quota:
        return self.by_tenant.get(tenant, self.others)

    def over(self, used: Mapping[str, int]) -> list[Take]:
        """What has to go because quotas are smaller now than they were."""
        return [
            Take(tenant, size_bytes - limit, 0)
            for tenant, size_bytes in used.items()
            if (limit := self.of(tenant).max_bytes) is not None and size_bytes > limit
        ]


class Take(NamedTuple):
    """Of this tenant's blocks so many bytes and so many blocks have to go, whichever is more."""

    tenant: str
    size_bytes: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Books:
    """Of one tier, by tenant; nobody with nothing."""

    capacity_bytes: int
    used: Mapping[str, int]
    evictable: Mapping[str, int]  # of `used`, what nobody refers to

    def may_give(self, tenant: str) -> int:
        return self.evictable.get(tenant, 0)


@dataclass(frozen=True, slots=True)
class Need:
    """What a block lacks to come in. `tenant` is who asks; the empty need of a tier that shrinks has no size."""

    tenant: str
    size_bytes: int
    lacking_bytes: int  # of the tier's room; not above zero: there is enough
    lacking_blocks: int = 0


def make_room(quotas: Quotas, books: Books, need: Need) -> list[Take] | None:
    """Who gives way for it, nobody twice. None: not without taking from those who are within their share."""
    own = _over_quota(quotas, books, need)
    if own is None:
        return None
    takes = {need.tenant: own} if own else {}
    lacking = max(need.lacking_bytes, int(need.lacking_blocks > 0)) - own
    if lacking > 0:
        lacking = _from_offenders(takes, quotas, books, need, lacking)
        lacking = _from_one(takes, books, need.tenant, lacking)
    return None if lacking > 0 else _with_blocks(takes, need.lacking_blocks)


def shares(quotas: Quotas, books: Books, tenant: str) -> dict[str, float]:
    """Bytes of the capacity for each who holds anything, and for this one."""
    weights = {each: quotas.of(each).share for each in {**books.used, tenant: 0}}
    total = sum(weights.values())
    return {each: books.capacity_bytes * weight / total for each, weight in weights.items()}


def _over_quota(quotas: Quotas, books: Books, need: Need) -> int | None:
    """What the requester has to give for its own quota's sake; None when that is more than it can."""
    limit = quotas.of(need.tenant).max_bytes
    if limit is None or not need.size_bytes:
        return 0
    over = max(0, books.used.get(need.tenant, 0) + need.size_bytes - limit)
    return over if need.size_bytes <= limit and over <= books.may_give(need.tenant) else None


def _from_offenders(takes: dict[str, int], quotas: Quotas, books: Books, need: Need, lacking: int) -> int:
    """Down to their shares, who is furthest over first. Returns what is lacking still."""
    for tenant, excess in _offenders(takes, quotas, books, need):
        if lacking <= 0:
            break
        lacking -= min(lacking, excess) - _from_one(takes, books, tenant, min(lacking, excess))
    return lacking


def _from_one(takes: dict[str, int], books: Books, tenant: str, wanted: int) -> int:
    """Takes it as far as the tenant has it. Returns what is lacking still."""
    given = takes.get(tenant, 0)
    more = min(wanted, books.may_give(tenant) - given)
    if more > 0:
        takes[tenant] = given + more
    return wanted - max(more, 0)


def _offenders(takes: Mapping[str, int], quotas: Quotas, books: Books, need: Need) -> list[tuple[str, int]]:
    """Those over their shares once the block is in, with by how many bytes, the furthest first."""
    fair = shares(quotas, books, need.tenant)
    held = {tenant: used - takes.get(tenant, 0) for tenant, used in books.used.items()}
    held[need.tenant] = held.get(need.tenant, 0) + need.size_bytes
    excess = {tenant: math.ceil(used - fair[tenant]) for tenant, used in held.items() if used > fair[tenant]}
    return sorted(excess.items(), key=lambda item: item[1], reverse=True)


def _with_blocks(takes: Mapping[str, int], blocks: int) -> list[Take]:
    """The first gives the blocks, where they lack and not only their bytes."""
    return [Take(tenant, size, blocks if not n else 0) for n, (tenant, size) in enumerate(takes.items())]
