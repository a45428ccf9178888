"""Where a request goes: pure functions from a snapshot to names. They make no call and keep no state.

`eligible` finds who may take the request; the model's policy says which of them does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from weir_chassis.errors import NoWorker, WeirError
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import ExecutorModel, ExecutorView, PostprocessorView, Role, TokenizerView, WorkerState
from weir_router.policies.eligible import eligible, wanted_tokens
from weir_router.policies.externals import able_externals, rank_beside
from weir_router.policies.forecast import within_limits
from weir_router.policies.policy import Candidate, Demand, Policy, Scored
from weir_router.policies.prediction import uncached_tokens

T = TypeVar("T")

# As many as the receipt has room for.
MAX_TOLD_SCORES: Final = 8


@dataclass(frozen=True, slots=True)
class Choice:
    executor: str
    model: ExecutorModel
    postprocessor: str
    # What the request may cost the executor at most: its prompt and all its outputs.
    reserved_tokens: int
    # The policy by which the executor was chosen, and what it thought of those that might have been: best first, and no
    # more of them than a receipt tells of.
    policy: str
    scores: Sequence[Scored]
    # Of the prompt, what the first executor is believed not to hold.
    uncached_tokens: int
    # Where the executor is; empty: nobody has said.
    region: str = ""
    # Who computes the prompt and each output's first token before the executor goes on; None: itself.
    prefill: str | None = None
    # It is a worker outside the suite, which takes the request whole, without a postprocessor.
    external: bool = False

    @property
    def first_executor(self) -> str:
        return self.prefill or self.executor


def choose(snapshot: FleetSnapshot, demand: Demand, policy: Policy) -> Choice:
    """Raises NoWorker, RevisionMismatch, NotFound, PromptTooLong when it fits none that is eligible, LimitsUnmet, or
    Overloaded when only workers outside the suite could take it and have no room.
    """
    scores = rank(snapshot, demand, policy)
    best = scores[0].candidate
    if any(best.address == worker.address for worker in snapshot.externals):
        return replace(_choice(scores, demand, policy, postprocessor=""), external=True)
    return _choice(scores, demand, policy, choose_postprocessor(snapshot, demand).address)


def _choice(scores: Sequence[Scored], demand: Demand, policy: Policy, postprocessor: str) -> Choice:
    best = scores[0].candidate
    reserved, uncached = _reserved_tokens(best.model, demand), uncached_tokens(best, demand)
    region, told = best.executor.traits.region, scores[:MAX_TOLD_SCORES]
    return Choice(best.address, best.model, postprocessor, reserved, policy.name, told, uncached, region)


def choose_prefill(
    choice: Choice, demand: Demand, able: Sequence[ExecutorView], policy: Policy, assigned: str | None = None
) -> Choice:
    """The same with whoever of these is to compute the prompt: who has asked for it, if it is among them; else the
    policy's first. Of nobody, nobody: its executor computes it itself.
    """
    candidates = [Candidate(executor, executor.model) for executor in able if executor.model]
    if not candidates:
        return choice
    asked = next((candidate for candidate in candidates if candidate.address == assigned), None)
    best = asked or policy.rank(candidates, demand)[0].candidate
    return replace(choice, prefill=best.address, uncached_tokens=uncached_tokens(best, demand))


def prefill_workers(snapshot: FleetSnapshot, demand: Demand, choice: Choice, min_tokens: int) -> Sequence[ExecutorView]:
    """Those who may compute the prompt for `choice`: whose role is that, and whose blocks the other can use.

    It costs a transfer of the prompt's blocks, which a prompt of fewer than `min_tokens` is not worth. They are many
    bytes and stay in one region.
    """
    if demand.prompt_tokens < min_tokens or choice.external:
        return ()
    return [
        executor
        for executor in snapshot.agreed(demand.version.model, demand.adapter)
        if executor.role is Role.PREFILL and executor.address not in demand.excluded and not executor.ejected
        if executor.model and executor.model.version == demand.version
        if wanted_tokens(demand) <= executor.model.max_model_len
        if executor.model.block_size == choice.model.block_size and executor.traits.region == choice.region
    ]


def rank(snapshot: FleetSnapshot, demand: Demand, policy: Policy) -> Sequence[Scored]:
    """All workers that may take the request, best first. Raises as `choose` does, and Unsupported."""
    externals = able_externals(snapshot, demand)
    if not externals:
        return rank_executors(snapshot, demand, policy)
    return rank_beside(_executors(snapshot, demand), externals, demand, policy)


def rank_executors(snapshot: FleetSnapshot, demand: Demand, policy: Policy) -> Sequence[Scored]:
    """All executors that may take the request, best first. Raises as `choose` does, and Unsupported."""
    return policy.rank(within_limits(eligible(snapshot, demand), demand), demand)


def choose_postprocessor(snapshot: FleetSnapshot, demand: Demand) -> PostprocessorView:
    """The replica with the fewest of our requests. Raises NoWorker."""
    replicas = [p for p in snapshot.postprocessors if _may_serve(p, demand.excluded)]
    if not replicas:
        raise NoWorker("no postprocess service is healthy")
    well = [replica for replica in replicas if not replica.ejected]
    return _least(well or replicas, lambda replica: replica.live_requests, demand.turn)


def choose_tokenizer(
    snapshot: FleetSnapshot,
    model: str,
    *,
    turn: int,
    excluded: frozenset[str] = frozenset(),
    adapter: str = "",
    revision: str = "",
) -> tuple[TokenizerView, ExecutorModel]:
    """Replicas in turn, and the model of an executor that agrees with the one chosen and has the adapter.

    Raises NoWorker, RevisionMismatch, NotFound.
    """
    executors = {e.model.version: e.model for e in snapshot.agreed(model, adapter, revision) if e.model}
    candidates = [
        (tokenizer, executors[known.version])
        for tokenizer in snapshot.tokenizers
        if _may_serve(tokenizer, excluded)
        for known in tokenizer.models
        if known.version in executors
    ]
    if not candidates:
        raise NoWorker(f"no tokenizer for {model!r} is healthy")
    well = [candidate for candidate in candidates if not candidate[0].ejected] or candidates
    return well[turn % len(well)]


def _executors(snapshot: FleetSnapshot, demand: Demand) -> Sequence[Candidate]:
    """Those that may take a request for text to its end; perhaps none."""
    try:
        choose_postprocessor(snapshot, demand)
        return within_limits(eligible(snapshot, demand), demand)
    except WeirError:
        return ()


def _may_serve(worker: TokenizerView | PostprocessorView, excluded: frozenset[str]) -> bool:
    return worker.state is WorkerState.SERVING and worker.address not in excluded


def _reserved_tokens(model: ExecutorModel, demand: Demand) -> int:
    per_output = demand.max_tokens or model.max_model_len - demand.prompt_tokens
    return demand.prompt_tokens + demand.n * per_output


def _least(workers: Sequence[T], load: Callable[[T], float], turn: int) -> T:
    least = min(map(load, workers))
    equals = [worker for worker in workers if load(worker) == least]
    return equals[turn % len(equals)]
