"""Which of all offers meet a request's constraints together; where none does, which comes nearest. Pure.

    targets, workers ──▶ offers: TTFT, cost, quality, region ──▶ those that break nothing, or the refusal

Nothing is bent: an offer that breaks one constraint by a little is as infeasible as one that breaks them all. The
nearest is named so that the client can decide what it would rather give up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from google.protobuf.message import Message
from google.rpc import error_details_pb2

from weir.inference.v1 import routing_pb2
from weir_router.models.target import Target
from weir_router.policies.forecast import LimitsUnmet
from weir_router.regions import Residency

_FIELD = "routing.constraints"


@dataclass(frozen=True, slots=True)
class Bounds:
    """None: not bounded. Where it may go is the request's residency, which is no part of this."""

    # From the call's start.
    max_ttft_seconds: float | None = None
    max_cost_micros: int | None = None
    min_quality: float | None = None

    @classmethod
    def of(cls, constraints: routing_pb2.Constraints) -> Bounds | None:
        """None: it sets none of these."""
        ttft, cost, quality = (constraints.HasField(name) for name in ("max_ttft", "max_cost_micros", "min_quality"))
        if not (ttft or cost or quality):
            return None
        return cls(
            constraints.max_ttft.ToNanoseconds() / 1e9 if ttft else None,
            constraints.max_cost_micros if cost else None,
            constraints.min_quality if quality else None,
        )


@dataclass(frozen=True, slots=True)
class Offer:
    """What one worker would make of the request, as one target. None: nobody has said."""

    target: Target
    worker: str
    revision: str
    # From the call's start.
    ttft_seconds: float
    cost_micros: int | None
    quality: float | None
    region: str


class Infeasible(LimitsUnmet):
    """Names each constraint that the nearest offer breaks, and that offer."""

    def __init__(self, nearest: Offer, broken: Sequence[str]):
        words = ", ".join(_told(name, nearest) for name in broken)
        super().__init__(_FIELD, f"nobody meets them; the nearest offer breaks {words}", metadata=_metadata(nearest))
        self.metadata["constraints"] = ",".join(broken)
        self.nearest, self.broken = nearest, tuple(broken)

    def details(self) -> list[Message]:
        request = error_details_pb2.BadRequest()
        for name in self.broken:
            request.field_violations.add(field=f"{_FIELD}.{name}", description=f"nearest: {_told(name, self.nearest)}")
        return [request]


def nearest(offers: Sequence[Offer], bounds: Bounds, residency: Residency) -> Offer:
    """Of at least one: the fewest broken, then the fewest that no number mends, then the least by which it is too much.

    That is the sum of what each is over its bound, as a part of the bound. Of equals the first.
    """

    def distance(offer: Offer) -> tuple[int, int, float]:
        over = excesses(offer, bounds, residency).values()
        return len(over), sum(value == inf for value in over), sum(value for value in over if value != inf)

    return min(offers, key=distance)


def excesses(offer: Offer, bounds: Bounds, residency: Residency) -> dict[str, float]:
    """By the names of the constraints that the offer breaks: how far, as a part of the bound; inf: no number says."""
    over: dict[str, float] = {}
    if bounds.max_ttft_seconds is not None and offer.ttft_seconds > bounds.max_ttft_seconds:
        over["max_ttft"] = offer.ttft_seconds / bounds.max_ttft_seconds - 1
    if bounds.max_cost_micros is not None:
        cost = inf if offer.cost_micros is None else float(offer.cost_micros)
        if cost > bounds.max_cost_micros:
            over["max_cost_micros"] = (cost - bounds.max_cost_micros) / max(1, bounds.max_cost_micros)
    if bounds.min_quality is not None and (offer.quality is None or offer.quality < bounds.min_quality):
        over["min_quality"] = inf if offer.quality is None else 1 - offer.quality / bounds.min_quality
    if not residency.allows(offer.region):
        over["regions"] = inf
    return over


def solve(offers: Sequence[Offer], bounds: Bounds, residency: Residency) -> Offer:
    """The first that breaks nothing. Raises Infeasible. There is at least one offer.

    A fallback region is none of the request's while anybody at home may take it, however dear or slow.
    """
    home = residency.at_home
    place = home if any(home.allows(offer.region) for offer in offers) else residency
    for offer in offers:
        if not excesses(offer, bounds, place):
            return offer
    near = nearest(offers, bounds, place)
    raise Infeasible(near, list(excesses(near, bounds, place)))


def _told(name: str, offer: Offer) -> str:
    value = {
        "max_ttft": f"it would begin after {offer.ttft_seconds:.3g} s",
        "max_cost_micros": "it has no price" if offer.cost_micros is None else f"it may cost {offer.cost_micros}",
        "min_quality": "it is not rated" if offer.quality is None else f"it is rated {offer.quality:g}",
        "regions": f"it is in {offer.region or 'no region that anybody has said'}",
    }[name]
    return f"{name} ({value})"


def _metadata(offer: Offer) -> dict[str, str]:
    told = {
        "nearest_model": offer.target.model,
        "nearest_revision": offer.revision,
        "nearest_ttft_seconds": f"{offer.ttft_seconds:.6g}",
        "nearest_region": offer.region,
    }
    if offer.cost_micros is not None:
        told["nearest_cost_micros"] = str(offer.cost_micros)
    if offer.quality is not None:
        told["nearest_quality"] = f"{offer.quality:g}"
    return told
