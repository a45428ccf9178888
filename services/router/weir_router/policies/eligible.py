"""Who may take a request: found once for all policies, and kept for as long as the fleet's facts stay the same.

Workers that are ejected are left out unless there is nobody else, for then that they failed is no reason to fail
another request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weir_chassis.errors import NoWorker, PromptTooLong, Unsupported, WeirError
from weir_router.fleet.snapshot import FleetSnapshot, revision_mismatch
from weir_router.fleet.views import ExecutorModel, ExecutorView, WorkerState
from weir_router.policies.policy import Candidate, Demand


def eligible(snapshot: FleetSnapshot, demand: Demand) -> Sequence[Candidate]:
    """At least one. Raises NoWorker, RevisionMismatch, NotFound, Unsupported, PromptTooLong."""
    key = ("able", demand.version, demand.adapter, demand.max_tokens == 0)
    positions = snapshot.kept_or(key, lambda: _able(snapshot, demand))
    executors = snapshot.executors
    able = [Candidate(executors[position], model) for position, model in positions]
    if demand.excluded:
        able = [candidate for candidate in able if candidate.executor.address not in demand.excluded]
        if not able:
            raise NoWorker(f"no other executor that serves {demand.version.model!r} is healthy")
    if demand.numerics is not None:
        able = [candidate for candidate in able if candidate.model.numerics == demand.numerics]
        if not able:
            raise NoWorker(f"no other executor that serves {demand.version.model!r} draws the same tokens")
    wanted = wanted_tokens(demand)
    fitting = [candidate for candidate in able if wanted <= candidate.model.max_model_len]
    if not fitting:
        raise _too_long(demand, max(candidate.model.max_model_len for candidate in able))
    return [candidate for candidate in fitting if not candidate.executor.ejected] or fitting


def exclusions(snapshot: FleetSnapshot, demand: Demand) -> Iterator[tuple[str, str]]:
    """Addresses of the executors that `eligible` leaves out, and why."""
    try:
        agreed = {executor.address for executor in snapshot.agreed(demand.version.model, demand.adapter)}
    except WeirError:
        agreed = set()
    reasons = {e.address: _why_not(e, demand, agrees=e.address in agreed) for e in snapshot.executors}
    others_are_well = any(not reasons[e.address] and not e.ejected for e in snapshot.executors)
    for executor in snapshot.executors:
        reason = reasons[executor.address]
        if not reason and executor.ejected and others_are_well:
            reason = "it failed too often, and is tried now and then"
        if reason:
            yield executor.address, reason


def wanted_tokens(demand: Demand) -> int:
    """Of a context, at least."""
    return demand.prompt_tokens + (1 if demand.max_tokens is None else demand.max_tokens)


def _able(snapshot: FleetSnapshot, demand: Demand) -> list[tuple[int, ExecutorModel]]:
    """Positions in the snapshot of those that might take a request of the kind. Raises unless there is one."""
    name = demand.version.model
    agreed = {executor.address for executor in snapshot.agreed(name, demand.adapter)}
    found = [(i, e, e.model) for i, e in enumerate(snapshot.executors) if e.address in agreed and e.model]
    same = [one for one in found if one[2].version == demand.version]
    if not same:
        raise revision_mismatch(name, [model.version for _, _, model in found], [demand.version])
    able = [one for one in same if demand.max_tokens != 0 or one[2].embedding_size]
    if not able:
        raise Unsupported(f"no executor that serves {name!r} makes embeddings")
    # A vector is a prefill and no more.
    whole = [(i, model) for i, executor, model in able if executor.decodes or demand.max_tokens == 0]
    if not whole:
        raise NoWorker(f"the executors that serve {name!r} only prefill")
    return whole


def _why_not(executor: ExecutorView, demand: Demand, *, agrees: bool) -> str:  # noqa: PLR0911  # one return per reason
    """Empty: it is eligible."""
    model = executor.model
    if executor.state is not WorkerState.SERVING:
        return f"it is {executor.state.value}"
    if model is None:
        return "it has not said what it serves"
    if model.version.model != demand.version.model:
        return f"it serves {model.version.model!r}"
    if model.version != demand.version:
        return f"it holds revision {model.version}, and the prompt is of {demand.version}"
    if demand.adapter and demand.adapter not in executor.adapters.values():
        return "it has not loaded the adapter"
    if not agrees:
        return "no tokenizer holds its revision"
    if demand.max_tokens == 0 and not model.embedding_size:
        return "it makes no embeddings"
    if demand.max_tokens != 0 and not executor.decodes:
        return "it only prefills"
    if executor.address in demand.excluded:
        return "it failed this request"
    if demand.numerics not in (None, model.numerics):
        return "it draws other tokens than the worker that began"
    if wanted_tokens(demand) > model.max_model_len:
        return f"{wanted_tokens(demand)} tokens do not fit its context of {model.max_model_len}"
    return ""


def _too_long(demand: Demand, limit: int) -> PromptTooLong:
    """Names the prompt when it is too long by itself, else what is wanted on top of it."""
    if demand.max_tokens == 0:
        return PromptTooLong("inputs", demand.prompt_tokens, limit)
    if demand.prompt_tokens >= limit:
        return PromptTooLong("prompt", demand.prompt_tokens, limit - 1)
    return PromptTooLong("stopping.max_tokens", wanted_tokens(demand), limit)
