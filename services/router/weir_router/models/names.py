"""What names come to now: models, `model@revision`, aliases, and what is selected where none is given. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from weir_chassis.errors import ModelNotFound, WeirError
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.models.selection import AUTO, Wanted, select
from weir_router.models.target import Target
from weir_router.regions import Residency
from weir_router.request import ClientRequest
from weir_router.routing import Routing


class Names:
    def __init__(self, routing: Routing):
        self._routing, self._fleet = routing, routing.fleet

    def wanted(self, request: ClientRequest) -> Sequence[Wanted]:
        """What it means, and what else would do. A model or an alias that is called "auto" is just that."""
        table = self._routing.config.selection
        name = "" if request.model == AUTO and not self._is_name(AUTO) else request.model
        return [Wanted(name)] if name or table is None else select(request.prompt, table)

    def _is_name(self, name: str) -> bool:
        return name in self._routing.aliases or name in self._fleet.snapshot(counted=False).known_models()

    def targets(self, names: Sequence[Wanted], subject: str, residency: Residency) -> Sequence[Target]:
        """All that they may come to: the first name's first, or the first after it that anybody serves.

        Raises NoWorker, InvalidArgument, ModelNotFound when the first name comes to nothing, and no other does.
        """
        found: list[Target] = []
        failure: WeirError | None = None
        for each in names:
            try:
                targets = self._targets(each.name, subject)
            except WeirError as error:
                failure = failure or error
            else:
                found += [replace(target, selected_by=each.rule) for target in targets] if each.rule else targets
        if not found:
            assert failure is not None
            raise failure
        if len(found) == 1:
            return found
        return _answering_first(found, self._fleet.snapshot(counted=False).within(residency))

    def _targets(self, name: str, subject: str) -> Sequence[Target]:
        snapshot, aliases = self._fleet.snapshot(counted=False), self._routing.aliases
        if name in aliases:
            return aliases.order(name, subject)
        if (pinned := _pinned(name, snapshot)) is not None:
            return [pinned]
        try:
            return [Target(snapshot.resolve_model(name))]
        except ModelNotFound:
            raise ModelNotFound(name, [*snapshot.known_models(), *aliases.names]) from None


def _pinned(name: str, snapshot: FleetSnapshot) -> Target | None:
    """`model@revision`, where that is no model's own name."""
    model, at, revision = name.rpartition("@")
    if not at or name in snapshot.known_models() or model not in snapshot.known_models():
        return None
    return Target(model, revision)


def _answering_first(targets: Sequence[Target], snapshot: FleetSnapshot) -> Sequence[Target]:
    """The subject's own target leads; where nobody serves that now, the one that it would have without it."""
    for index, target in enumerate(targets):
        if snapshot.answers(target.model, target.revision):
            return [target, *targets[:index], *targets[index + 1 :]]
    return targets


def subject_of(request: ClientRequest) -> str:
    """Whom the request is about, for its tenant; by itself where nobody is named."""
    return f"{request.tenant}\0{request.subject}" if request.subject else request.request_id


def subject_of_tenant(tenant: str) -> str:
    """For what all requests of a tenant must agree on."""
    return f"{tenant}\0"
