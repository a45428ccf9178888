"""What the fleet offers for a request, as each of the targets that may answer it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from weir_chassis.errors import WeirError
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.models.constraints import Offer
from weir_router.models.target import Target
from weir_router.policies.eligible import eligible
from weir_router.policies.forecast import forecasts
from weir_router.policies.policy import Demand
from weir_router.request import ClientRequest, EncodedPrompt


@dataclass(frozen=True, slots=True)
class Wish:
    """A target, and what the request is there. `prompt`: in its tokens; None: it has not been asked for them."""

    target: Target
    quality: float | None
    prompt: EncodedPrompt | None
    # Of the prompt, or as many as it has elsewhere.
    prompt_tokens: int
    # By the request until now.
    waited_seconds: float


def offers(
    snapshot: FleetSnapshot, wish: Wish, request: ClientRequest, informed: Callable[[Demand], Demand]
) -> list[Offer]:
    """One of each worker that may take it; none where nobody may, for whatever reason.

    `informed`: the same demand with what is known of who holds its prompt.
    """
    return [offer for demand in _demands(snapshot, wish, request) for offer in _of(snapshot, wish, informed(demand))]


def _demands(snapshot: FleetSnapshot, wish: Wish, request: ClientRequest) -> Iterable[Demand]:
    """Without limits: what is over them is to be seen."""
    target, stopping = wish.target, request.stopping
    try:
        adapter = snapshot.resolve_adapter(target.model, request.adapter, target.revision)
        agreed = snapshot.agreed(target.model, adapter, target.revision)
    except WeirError:
        return
    versions, prompt = {executor.model.version for executor in agreed if executor.model}, wish.prompt
    for version in sorted(versions):
        if prompt is None or prompt.version == version:
            yield Demand(
                version=version,
                prompt_tokens=wish.prompt_tokens,
                max_tokens=stopping.max_tokens if stopping.HasField("max_tokens") else None,
                n=request.n,
                turn=0,  # nobody is preferred to his equals here
                adapter=adapter,
                block_hashes=b"" if prompt is None else prompt.block_hashes,
                block_size=0 if prompt is None else prompt.block_size,
            )


def _of(snapshot: FleetSnapshot, wish: Wish, demand: Demand) -> Sequence[Offer]:
    try:
        candidates = eligible(snapshot, demand)
    except WeirError:
        return ()
    return [
        Offer(
            target=wish.target,
            worker=candidate.address,
            revision=demand.version.revision,
            ttft_seconds=wish.waited_seconds + forecast.ttft_seconds,
            cost_micros=forecast.cost_micros,
            quality=wish.quality,
            region=candidate.executor.traits.region,
        )
        for candidate, forecast in zip(candidates, forecasts(candidates, demand), strict=True)
    ]
