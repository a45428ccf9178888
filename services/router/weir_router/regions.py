"""Where one request's bytes may go: a value without which no worker can be reached. Pure.

    [tenants.acme]  ∩  the request's own constraints  =  Residency  ── fleet.executor(address, residency)
                                                                     ── fleet.tokenizer(address, residency), …

Two fences stand one behind the other. What decides looks at a snapshot that holds only those workers which the
residency allows (`FleetSnapshot.within`). What acts asks for a link, a stub or a stream with the residency in hand, and
is given none of a worker elsewhere, whatever has been decided: retries, hedges, shadows and continuations too. A worker
whose region nobody has said is in none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Final, TypeVar

from weir_chassis.errors import NoWorker, PermissionDenied, RevisionMismatch

T = TypeVar("T")


class ResidencyViolated(AssertionError):  # noqa: N818  # named as the errors of the chassis are
    """A bug of ours, stopped before a byte has left. Raised also where Python is told to skip assertions."""


@dataclass(frozen=True, slots=True)
class Residency:
    """Made by `residency` for a request and by nobody else: see there."""

    # None: anywhere.
    regions: frozenset[str] | None
    # Where it may go besides, when nobody in `regions` can take it.
    fallback: frozenset[str] = frozenset()

    @property
    def allowed(self) -> frozenset[str] | None:
        """Of both kinds; None: anywhere."""
        return None if self.regions is None else self.regions | self.fallback

    def allows(self, region: str) -> bool:
        allowed = self.allowed
        return allowed is None or region in allowed

    def require(self, worker: str, region: str) -> None:
        """Raises ResidencyViolated when the worker is elsewhere."""
        if not self.allows(region):
            where = region or "no region that anybody has said"
            raise ResidencyViolated(f"{worker} is in {where}, and the request must stay in {self}")

    @property
    def at_home(self) -> Residency:
        """Without the fallback."""
        return Residency(self.regions) if self.fallback else self

    def find(self, decide: Callable[[Residency], T]) -> T:
        """What is decided at home, or with the fallback when nobody is there who could.

        Raises as `decide` does; NoWorker then names where the request had to stay.
        """
        try:
            return decide(self.at_home)
        except (NoWorker, RevisionMismatch) as error:
            if not self.fallback:
                raise self._refusal(error) from None
        try:
            return decide(self)
        except NoWorker as error:
            raise self._refusal(error) from None

    def _refusal(self, error: NoWorker | RevisionMismatch) -> NoWorker | RevisionMismatch:
        if self.allowed is None or isinstance(error, RevisionMismatch):
            return error
        where = {"regions": ",".join(sorted(self.allowed))}
        return NoWorker(f"{error.message} (in {self})", metadata={**error.metadata, **where})

    def __str__(self) -> str:
        return "any region" if self.allowed is None else ", ".join(sorted(self.allowed))


# For what carries nothing of a client's: an operator's own call to a worker.
NO_CLIENT: Final = Residency(None)


@dataclass(frozen=True, slots=True)
class TenantRegions:
    """Where a tenant's requests may go. `regions` None: anywhere."""

    regions: frozenset[str] | None = None
    fallback: frozenset[str] = frozenset()


def residency(tenants: Mapping[str, TenantRegions], tenant: str, wanted: Set[str]) -> Residency:
    """For one request of this tenant; `wanted`: its own constraint, which only ever narrows. Empty: none.

    A tenant that has no entry has that of "*", if there is one. Raises PermissionDenied when the request asks for
    regions of which its tenant may use none.
    """
    own = tenants.get(tenant) or tenants.get("*") or TenantRegions()
    if not wanted:
        return Residency(own.regions, own.fallback)
    if own.regions is None:
        return Residency(frozenset(wanted))
    home, fallback = own.regions & wanted, own.fallback & wanted
    if not home | fallback:
        theirs = ",".join(sorted(own.regions | own.fallback))
        message = f"regions {', '.join(sorted(wanted))} are not the tenant's, which are {theirs}"
        raise PermissionDenied(message, metadata={"regions": theirs})
    return Residency(home or fallback, fallback if home else frozenset())
