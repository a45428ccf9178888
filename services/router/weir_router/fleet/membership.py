"""Who belongs to the fleet: what was configured, what DNS says and what announced itself, merged into one set. Pure.

    static      for as long as the router runs
    DNS         for as long as the name resolves to it
    hosted      for as long as a model host says that it serves there
    announced   for as long as its lease holds, and beyond that for as long as it answers on its own connection

The last rule is what an outage of NATS costs: nothing. A worker that nobody hears of but that answers is there; one
that neither announces itself nor answers is gone; one that says that it leaves is gone at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Self

from weir.fleet.v1.instance_pb2 import Instance
from weir_chassis.fleet.wire import kind_name

WorkerKind = Literal["executor", "tokenizer", "postprocess"]
Source = Literal["static", "dns", "hosted", "announced"]
KINDS: Final[tuple[WorkerKind, ...]] = ("executor", "tokenizer", "postprocess")
# Each costs a connection and three watching tasks.
MAX_OF_A_KIND: Final = 1024


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a worker of a kind is, or should be. `address`: `host:port`, as it is connected to."""

    kind: WorkerKind
    address: str


@dataclass(frozen=True, slots=True)
class Heard:
    """What was announced, and until when it holds, in monotonic seconds."""

    instance: Instance
    # Made of the instance, once. None for one that no router sends requests to: another router, a kvstore.
    place: Place | None
    expires_at: float

    @classmethod
    def of(cls, instance: Instance, expires_at: float) -> Self:
        kind = next((known for known in KINDS if known == kind_name(instance.kind)), None)
        return cls(instance, None if kind is None else Place(kind, instance.address), expires_at)


@dataclass(frozen=True, slots=True)
class Member:
    source: Source
    # What it has announced; None: nothing.
    instance: Instance | None = None


@dataclass(frozen=True, slots=True)
class Membership:
    members: Mapping[Place, Member] = field(default_factory=dict)
    # Of each kind, those that were too many.
    left_out: Mapping[WorkerKind, int] = field(default_factory=dict)


def membership(
    static: Iterable[Place],
    resolved: Iterable[Place],
    hosted: Iterable[Place],
    heard: Iterable[Heard],
    answering: Collection[Place],
    *,
    now: float,
    limit: int = MAX_OF_A_KIND,
) -> Membership:
    """`answering`: who does so now on its own connection.

    One address is one worker, whoever names it. Where there are too many of a kind, those that are configured go first,
    then those that answer, so that nobody is given up for a stranger.
    """
    merged = {place: Member("static") for place in static}
    for place in resolved:
        merged.setdefault(place, Member("dns"))
    for place in hosted:
        merged.setdefault(place, Member("hosted"))
    announced = newest(one for one in heard if now < one.expires_at or one.place in answering)
    for place, instance in announced.items():
        if place in merged:
            merged[place] = Member(merged[place].source, instance)
        else:
            merged[place] = Member("announced", instance)
    return _bounded(merged, answering, limit)


def newest(heard: Iterable[Heard]) -> dict[Place, Instance]:
    """Of each address, the latest incarnation that has been heard of."""
    latest: dict[Place, Instance] = {}
    for one in heard:
        if one.place is None:
            continue
        known = latest.get(one.place)
        if known is None or _incarnation(known) < _incarnation(one.instance):
            latest[one.place] = one.instance
    return latest


def _incarnation(instance: Instance) -> tuple[int, str]:
    return instance.epoch, instance.instance_id


def _bounded(merged: Mapping[Place, Member], answering: Collection[Place], limit: int) -> Membership:
    members, counts = dict[Place, Member](), Counter[WorkerKind]()
    for place in _in_order(merged, answering):
        counts[place.kind] += 1
        if counts[place.kind] <= limit:
            members[place] = merged[place]
    left_out = {kind: count - limit for kind, count in counts.items() if count > limit}
    return Membership(members, left_out)


def _in_order(merged: Mapping[Place, Member], answering: Collection[Place]) -> Iterator[Place]:
    """Static ones as they were configured, so that what was listed first is shown first."""
    yield from (place for place, member in merged.items() if member.source == "static")
    others = [place for place, member in merged.items() if member.source != "static"]
    yield from sorted(others, key=lambda place: (place not in answering, place))
