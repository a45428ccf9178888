"""What the fleet offers for a request, as each of the targets that may answer it: by executors and by others. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from weir_chassis.errors import WeirError
from weir_router.demand import demand_of
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.journey import Journey
from weir_router.models.constraints import Offer
from weir_router.models.target import Target
from weir_router.policies.eligible import eligible
from weir_router.policies.externals import able_externals, external_candidate
from weir_router.policies.forecast import forecasts
from weir_router.policies.policy import Candidate, Demand
from weir_router.providers.guess import unencoded
from weir_router.request import EncodedPrompt


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


def offers(snapshot: FleetSnapshot, wish: Wish, journey: Journey, informed: Callable[[Demand], Demand]) -> list[Offer]:
    """One of each worker that may take it; none where nobody may, for whatever reason.

    `informed`: the same demand with what is known of who holds its prompt.
    """
    unbounded = replace(journey, target=wish.target, bounds=None)  # what is over a bound is to be seen
    demands = [demand_of(unbounded, prompt) for prompt in _prompts(snapshot, wish, journey)]
    return [offer for demand in demands for offer in _of(snapshot, wish, informed(demand))]


def _prompts(snapshot: FleetSnapshot, wish: Wish, journey: Journey) -> Iterator[EncodedPrompt]:
    """As it is; or as it might be in each version that the target has now; or, of none, as those outside take it."""
    if wish.prompt is not None:
        yield wish.prompt
        return
    target = wish.target
    with suppress(WeirError):
        adapter = snapshot.resolve_adapter(target.model, journey.request.adapter, target.revision)
        agreed = snapshot.agreed(target.model, adapter, target.revision)
        for version in sorted({executor.model.version for executor in agreed if executor.model}):
            yield EncodedPrompt(version, (), b"", 0, adapter, guessed_tokens=wish.prompt_tokens)
        return
    yield unencoded(target.model, journey.request)


def _of(snapshot: FleetSnapshot, wish: Wish, demand: Demand) -> Sequence[Offer]:
    candidates = _candidates(snapshot, demand)
    return [
        Offer(
            target=wish.target,
            worker=candidate.address,
            revision=candidate.model.version.revision,
            ttft_seconds=wish.waited_seconds + forecast.ttft_seconds,
            cost_micros=forecast.cost_micros,
            quality=wish.quality,
            region=candidate.executor.traits.region,
        )
        for candidate, forecast in zip(candidates, forecasts(candidates, demand), strict=True)
    ]


def _candidates(snapshot: FleetSnapshot, demand: Demand) -> Sequence[Candidate]:
    candidates = [external_candidate(worker, demand) for worker in able_externals(snapshot, demand)]
    with suppress(WeirError):
        candidates = [*eligible(snapshot, demand), *candidates]
    return candidates
