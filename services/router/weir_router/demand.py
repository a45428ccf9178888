"""What a request asks of the fleet, in the words in which workers are chosen. Pure."""

from __future__ import annotations

from weir_router.journey import Journey
from weir_router.policies.policy import Demand
from weir_router.providers.needs import needs
from weir_router.request import EncodedPrompt


def demand_of(
    journey: Journey,
    prompt: EncodedPrompt,
    *,
    excluded: frozenset[str] = frozenset(),
    drawn: int = 0,
    numerics: str | None = None,
) -> Demand:
    """What is still to be done: tokens that are drawn are a part of the prompt for whoever goes on.

    `drawn`: of the output that has most. Only executors go on after tokens. `excluded`: workers that have had it.
    """
    request, stopping, target = journey.request, journey.request.stopping, journey.target
    limit = stopping.max_tokens if stopping.HasField("max_tokens") else None
    return Demand(
        version=prompt.version,
        prompt_tokens=prompt.num_tokens + drawn,
        max_tokens=None if limit is None else max(1, limit - drawn),
        n=request.n,
        turn=journey.turn,
        excluded=excluded,
        adapter=prompt.adapter,
        numerics=numerics,
        session=request.routing.session,
        block_hashes=prompt.block_hashes,
        block_size=prompt.block_size,
        revision=target.revision if target else "",
        needs=None if drawn else needs(request),
        via=request.via,
        max_ttft_seconds=journey.ttft_left_seconds(),
        max_cost_micros=journey.bounds.max_cost_micros if journey.bounds else None,
    )
