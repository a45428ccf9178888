"""Which model and version answers a request: what the client named becomes a target, and the prompt its tokens.

name ──▶ targets, preferred first ──▶ the prompt in the first one's tokens ──▶ too long for it? ──▶ within bounds?
"""

from __future__ import annotations

from collections.abc import Sequence

from weir_chassis.clock import Clock
from weir_chassis.errors import PromptTooLong
from weir_router.encoder import Encoder
from weir_router.journey import Journey
from weir_router.models.constraints import Bounds, Offer, solve
from weir_router.models.names import Names, subject_of
from weir_router.models.offers import Wish, offers
from weir_router.models.selection import LONG_CONTEXT, Wanted, long_context
from weir_router.models.target import Target
from weir_router.regions import Residency
from weir_router.request import EncodedPrompt
from weir_router.routing import Routing


class Models:
    def __init__(self, routing: Routing, encoder: Encoder, clock: Clock):
        self._routing, self._fleet, self._encoder, self._clock = routing, routing.fleet, encoder, clock
        self._names = Names(routing)

    def resolve(self, name: str, subject: str, residency: Residency) -> Target:
        """What is served under the name now, to this subject. Raises NoWorker, InvalidArgument, ModelNotFound."""
        return self._names.targets([Wanted(name)], subject, residency)[0]

    def check(self, journey: Journey) -> None:
        """What nobody has is refused before it waits for a place."""
        journey.wanted = self._names.wanted(journey.request)
        target = self._targets(journey)[0]
        self._fleet.snapshot(counted=False).resolve_adapter(target.model, journey.request.adapter, target.revision)

    async def encode(self, journey: Journey) -> EncodedPrompt:
        """The prompt in its target's own tokens. Raises as `resolve` and `Encoder.encode` do, and Infeasible."""
        begun = journey.request.keeping.begun
        if begun is not None:
            return self._encoded(begun.prompt, journey)
        targets = self._targets(journey)
        try:
            prompt = await self._encode(targets[0], journey)
            longer = self._longer(prompt.num_tokens, targets[0])
        except PromptTooLong as error:
            longer = self._longer(int(error.metadata["tokens"]), targets[0])
            if longer is None:
                raise
        if longer is not None:
            journey.wanted = [longer, *journey.wanted]
            targets = self._targets(journey)
            prompt = await self._encode(targets[0], journey)
        journey.bounds = Bounds.of(journey.request.routing.constraints)
        return prompt if journey.bounds is None else await self._within(journey.bounds, targets, prompt, journey)

    def _longer(self, prompt_tokens: int, target: Target) -> Wanted | None:
        """Where the prompt belongs instead, when its model was left open and it is that long."""
        table = self._routing.config.selection
        if table is None or target.selected_by in ("", LONG_CONTEXT):
            return None
        return long_context(prompt_tokens, table)

    def _encoded(self, prompt: EncodedPrompt, journey: Journey) -> EncodedPrompt:
        """By another router: its target stays what it is."""
        model = prompt.version.model
        journey.target, journey.turn = Target(model), self._routing.next_turn(model)
        journey.bounds = Bounds.of(journey.request.routing.constraints)
        return prompt

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
            prompt=own,
            prompt_tokens=(own or first).num_tokens,
            waited_seconds=self._clock.monotonic() - journey.started_at,
        )
        return offers(self._fleet.snapshot().within(tenants), wish, journey, self._routing.informed)

    def _targets(self, journey: Journey) -> Sequence[Target]:
        return self._names.targets(journey.wanted, subject_of(journey.request), journey.residency)
