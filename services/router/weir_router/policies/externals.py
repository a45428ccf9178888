"""Workers outside the suite beside the executors: who of them may take a request, and when they are asked. Pure.

    ranked       like any executor, by the model's policy
    overflow     after all of those; before them while each of those owes more tokens than the overflow's own bound

The same policy orders those who are asked alike. An executor draws tokens of one revision, which the prompt was encoded
for; a provider is asked by the model's name and no more, and another router by the revision that it says it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final

from weir_chassis.errors import Overloaded
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import ExecutorView, ExternalView, WorkerState
from weir_router.policies.eligible import wanted_tokens
from weir_router.policies.forecast import LimitsUnmet, within_limits
from weir_router.policies.policy import Candidate, Demand, Policy, Scored
from weir_router.providers.via import MAX_ROUTERS

# For one that has as many requests as it may: one of them ends within about so long.
_MIN_RETRY: Final = timedelta(seconds=0.5)


def able_externals(snapshot: FleetSnapshot, demand: Demand) -> list[ExternalView]:
    """Those who could take the request, if they have room. Nobody, when it is no request for text."""
    needs = demand.needs
    if needs is None:
        return []
    return [worker for worker in snapshot.externals if _is_able(worker, demand, needs)]


def rank_beside(
    local: Sequence[Candidate], externals: Sequence[ExternalView], demand: Demand, policy: Policy
) -> Sequence[Scored]:
    """All of both that have room, best first. Raises Overloaded when there are none but externals without room."""
    like, before, after = list(local), list[Candidate](), list[Candidate]()
    owed = min((candidate.executor.outstanding_tokens for candidate in local), default=None)
    for worker, candidate in _with_room(externals, demand):
        bound = worker.overflow_above_tokens
        if bound is None:
            like.append(candidate)
        else:
            (after if owed is None or owed < bound else before).append(candidate)
    tiers = [policy.rank(tier, demand) for tier in (before, like, after) if tier]
    if not tiers:
        raise _no_room(externals)
    return tiers[0] if len(tiers) == 1 else [scored for tier in tiers for scored in tier]


def exclusions(snapshot: FleetSnapshot, demand: Demand) -> Iterator[tuple[str, str]]:
    """Addresses of those outside the suite that are not ranked, and why."""
    needs, name = demand.needs, demand.version.model
    for worker in snapshot.externals:
        if worker.state is not WorkerState.SERVING:
            yield worker.address, f"it is {worker.state.value}"
        elif name not in worker.models:
            yield worker.address, f"it does not serve {name!r}"
        elif worker.address in demand.excluded:
            yield worker.address, "it failed this request"
        elif needs is None or not _is_able(worker, demand, needs):
            yield worker.address, "it cannot do what the request needs"
        elif not worker.has_room:
            yield worker.address, "it can take nothing more now"
        elif name in worker.ejected:
            yield worker.address, "it failed too often, and is tried now and then"


def _is_able(worker: ExternalView, demand: Demand, needs: frozenset[str]) -> bool:
    model = worker.models.get(demand.version.model)
    if model is None or worker.state is not WorkerState.SERVING or worker.address in demand.excluded:
        return False
    if worker.forwards and (len(demand.via) >= MAX_ROUTERS or worker.traits.instance_id in demand.via):
        return False
    # A prompt that nobody here could encode is of no revision yet, and of no length that could be held against it.
    encoded = bool(demand.version.revision)
    return (
        (not (encoded and worker.forwards) or model.version == demand.version)
        and demand.revision in ("", model.version.revision)
        and (worker.abilities is None or needs <= worker.abilities)
        and (not encoded or wanted_tokens(demand) <= model.max_model_len)
    )


def _with_room(externals: Sequence[ExternalView], demand: Demand) -> Iterator[tuple[ExternalView, Candidate]]:
    """Those that keep the request's own limits; and are not ejected, unless all of them are."""
    roomy = [worker for worker in externals if worker.has_room]
    well = [worker for worker in roomy if demand.version.model not in worker.ejected] or roomy
    candidates = {worker.address: external_candidate(worker, demand) for worker in well}
    with suppress(LimitsUnmet):
        keeping = {one.address for one in within_limits(list(candidates.values()), demand)}
        yield from ((worker, candidates[worker.address]) for worker in well if worker.address in keeping)


def external_candidate(worker: ExternalView, demand: Demand) -> Candidate:
    """As policies see workers."""
    model = worker.models[demand.version.model]
    view = ExecutorView(worker.address, worker.state, model, routed_tokens=worker.routed_tokens, traits=worker.traits)
    return Candidate(view, model)


def _no_room(externals: Sequence[ExternalView]) -> Overloaded:
    rest = timedelta(seconds=min(worker.rest_seconds for worker in externals))
    names = ", ".join(worker.address for worker in externals)
    return Overloaded(f"{names} can take nothing more now", retry_after=max(rest, _MIN_RETRY))
