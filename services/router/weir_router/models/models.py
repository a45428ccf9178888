"""Which model and version answers a request: what the client named becomes a target, and the prompt its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from weir_chassis.clock import Clock
from weir_chassis.errors import ModelNotFound
from weir_chassis.telemetry import get_logger
from weir_router.encoder import Encoder
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.journey import Journey
from weir_router.models.aliases import TargetView
from weir_router.models.constraints import Bounds, Offer, solve
from weir_router.models.metrics import ModelMetrics
from weir_router.models.offers import Wish, offers
from weir_router.models.outcome import outcome_of
from weir_router.models.target import Target
from weir_router.regions import Residency
from weir_router.request import ClientRequest, EncodedPrompt
from weir_router.routing import Routing


class Models:
    def __init__(self, routing: Routing, encoder: Encoder, clock: Clock, metrics: ModelMetrics):
        self._routing, self._fleet, self._encoder = routing, routing.fleet, encoder
        self._clock, self._metrics = clock, metrics

    def resolve(self, name: str, subject: str, residency: Residency) -> Target:
        """What is served under the name now, to this subject. Raises NoWorker, InvalidArgument, ModelNotFound."""
        return self._targets(name, subject, residency)[0]

    def _targets(self, name: str, subject: str, residency: Residency) -> Sequence[Target]:
        """All that the name may come to: the subject's own first, or the first after it that anybody serves."""
        snapshot, aliases = self._fleet.snapshot(), self._routing.aliases
        if name in aliases:
            return _answering_first(aliases.order(name, subject), snapshot.within(residency))
        try:
            return [Target(snapshot.resolve_model(name))]
        except ModelNotFound:
            raise ModelNotFound(name, [*snapshot.known_models(), *aliases.names]) from None

    def check(self, request: ClientRequest) -> None:
        """What nobody has is refused before it waits for a place."""
        target = self._targets_of(request)[0]
        self._fleet.snapshot().resolve_adapter(target.model, request.adapter, target.revision)

    async def encode(self, journey: Journey) -> EncodedPrompt:
        """The prompt in its target's own tokens. Raises as `resolve` and `Encoder.encode` do, and Infeasible."""
        targets = self._targets_of(journey.request)
        prompt = await self._encode(targets[0], journey)
        journey.bounds = Bounds.of(journey.request.routing.constraints)
        return prompt if journey.bounds is None else await self._within(journey.bounds, targets, prompt, journey)

    async def _encode(self, target: Target, journey: Journey) -> EncodedPrompt:
        journey.target, journey.turn = target, self._routing.next_turn(target.model)
        return await self._encoder.encode(target, journey)

    async def _within(
        self, bounds: Bounds, targets: Sequence[Target], prompt: EncodedPrompt, journey: Journey
    ) -> EncodedPrompt:
        """Of the first target that keeps the bounds, by the tokens that the prompt has there.

        Until a target is asked, its prompt is taken to be as long as the first one's; so each is asked once at most.
        """
        prompts = {targets[0]: prompt}
        while True:
            offers = [
                offer for target in targets for offer in self._offers(target, prompts.get(target), prompt, journey)
            ]
            if not offers:
                return prompt  # nobody may take it at all: whoever chooses says why
            best = solve(offers, bounds, journey.residency).target
            if best in prompts:
                journey.target = best
                return prompts[best]
            prompts[best] = await self._encode(best, journey)

    def _offers(
        self, target: Target, own: EncodedPrompt | None, first: EncodedPrompt, journey: Journey
    ) -> Sequence[Offer]:
        """Of all workers where the tenant's requests may go, be it not this one: the nearest offer may be there."""
        tenants = self._routing.residency(journey.request.tenant)
        wish = Wish(
            target,
            quality=self._routing.quality(target),
            version=None if own is None else own.version,
            prompt_tokens=len((own or first).token_ids),
            waited_seconds=self._clock.monotonic() - journey.started_at,
        )
        return offers(self._fleet.snapshot().within(tenants), wish, journey.request, journey.turn)

    def _targets_of(self, request: ClientRequest) -> Sequence[Target]:
        return self._targets(request.model, _subject_of(request), request.residency)

    def ended(self, journey: Journey, error: BaseException | None) -> None:
        """Counts for the alias' targets what has come of a request. `error`: what its client was told, if anything."""
        if journey.target is None or not journey.target.alias:
            return
        now = self._clock.monotonic()
        first = journey.progress.first_delta_at
        outcome = outcome_of(
            error,
            accepted=journey.progress.accepted_at is not None,
            ttft_seconds=None if first is None else first - journey.started_at,
            waited=now - journey.started_at,
        )
        self._metrics.ended(journey.target, outcome)
        canary = self._routing.aliases.note(journey.target, outcome, now)
        if canary is not None:
            self._tell(canary)

    def _tell(self, canary: TargetView) -> None:
        self._metrics.decided(canary)
        assert canary.stage is not None
        get_logger().warning(
            f"canary_{canary.stage.value}",
            alias=canary.target.alias,
            arm=canary.name,
            weight_now=canary.weight_now,
            reason=canary.reason,
        )


def _subject_of(request: ClientRequest) -> str:
    """Whom the request is about, for its tenant; by itself where nobody is named."""
    return f"{request.tenant}\0{request.subject}" if request.subject else request.request_id


def subject_of_tenant(tenant: str) -> str:
    """For what all requests of a tenant must agree on."""
    return f"{tenant}\0"


def _answering_first(targets: Sequence[Target], snapshot: FleetSnapshot) -> Sequence[Target]:
    """The subject's own target leads; where nobody serves that now, the one that it would have without it."""
    for index, target in enumerate(targets):
        if snapshot.answers(target.model, target.revision):
            return [target, *targets[:index], *targets[index + 1 :]]
    return targets
