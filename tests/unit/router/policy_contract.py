"""What every routing policy does, whatever it prefers: checked by name in `test_policies.py`."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from hypothesis import strategies as st

from unit.router.views import DOWN, DRAINING, SERVING, demand, executor, fleet
from weir_chassis.errors import NoWorker, PromptTooLong, RevisionMismatch
from weir_router.fleet.outstanding import Outstanding, Reservation
from weir_router.fleet.views import ExecutorView, Load, Price, Role
from weir_router.policies.choose import rank_executors
from weir_router.policies.forecast import LimitsUnmet, forecasts
from weir_router.policies.policy import Candidate, Demand, Policy, Scored

_NAMES: Final = "abcdefgh"

loads = st.builds(
    Load,
    epoch=st.just(1),
    sequence=st.just(1),
    age_seconds=st.floats(0.0, 10.0),
    prefill_token_seconds=st.none() | st.floats(1e-6, 1e-2),
)
executors = st.builds(
    executor,
    address=st.sampled_from(_NAMES),
    revision=st.sampled_from(["r1", "r2"]),
    model=st.sampled_from(["m", "n"]),
    state=st.sampled_from([SERVING, DRAINING, DOWN]),
    routed=st.integers(0, 10**6),
    foreign=st.integers(0, 10**6),
    max_model_len=st.sampled_from([15, 100]),
    role=st.sampled_from(Role),
    weight=st.floats(0.0, 100.0),
    ramp=st.floats(0.01, 1.0),
    price=st.none() | st.builds(Price, *[st.integers(0, 10**9)] * 3),
    load=st.none() | loads,
    routed_prefill_tokens=st.integers(0, 10**6),
    foreign_prefill_tokens=st.integers(0, 10**6),
    ejected=st.booleans(),
)
fleets = st.lists(executors, min_size=1, max_size=len(_NAMES), unique_by=lambda view: view.address)
demands = st.builds(
    demand,
    prompt_tokens=st.integers(1, 60),
    max_tokens=st.none() | st.integers(1, 40),
    n=st.integers(1, 3),
    turn=st.integers(0, 2**40),
    excluded=st.frozensets(st.sampled_from(_NAMES), max_size=3),
    session=st.sampled_from(["", "s", "t", "u"]),
    max_ttft_seconds=st.none() | st.floats(0.001, 10.0),
    cached_tokens=st.dictionaries(st.sampled_from(_NAMES), st.integers(0, 60)),
)


def may_take(view: ExecutorView, wanted: Demand) -> bool:
    """Alive and capable, by the words of the contract."""
    most = wanted.prompt_tokens + (1 if wanted.max_tokens is None else wanted.max_tokens)
    return (
        view.state is SERVING
        and view.model is not None
        and view.model.version == wanted.version
        and view.address not in wanted.excluded
        and view.role is not Role.PREFILL
        and view.model.max_model_len >= most
    )


def keeping(views: Sequence[ExecutorView], wanted: Demand) -> Sequence[Candidate]:
    """Those of them that should begin to answer in time, by the prediction that all policies share."""
    candidates = [Candidate(view, view.model) for view in views if view.model]
    seconds = [forecast.ttft_seconds for forecast in forecasts(candidates, wanted)]
    limit = inf if wanted.max_ttft_seconds is None else wanted.max_ttft_seconds
    return [candidate for candidate, each in zip(candidates, seconds, strict=True) if each <= limit]


def check_never_a_dead_or_incapable_worker(policy: Policy, views: Sequence[ExecutorView], wanted: Demand) -> None:
    able = {view.address for view in views if may_take(view, wanted)}
    able = {view.address for view in views if view.address in able and not view.ejected} or able
    able = {candidate.address for candidate in keeping([view for view in views if view.address in able], wanted)}
    try:
        ranked = rank_executors(fleet(*views), wanted, policy)
    except (NoWorker, RevisionMismatch, PromptTooLong, LimitsUnmet):
        assert not able
    else:
        assert {scored.candidate.address for scored in ranked} == able


def check_every_candidate_is_ranked_once(policy: Policy, views: Sequence[ExecutorView], wanted: Demand) -> None:
    ranked = rank(policy, views, wanted)
    assert Counter(scored.candidate.address for scored in ranked) == Counter(view.address for view in views)
    scores = [scored.score for scored in ranked]
    assert scores == sorted(scores), "the lowest score is first"
    assert list(ranked[:3]) == [ranked[i] for i in range(min(3, len(views)))]


def check_determinism(policy: Policy, views: Sequence[ExecutorView], wanted: Demand) -> None:
    assert list(rank(policy, views, wanted)) == list(rank(policy, views, wanted))


def rank(policy: Policy, views: Sequence[ExecutorView], wanted: Demand) -> Sequence[Scored]:
    return policy.rank([Candidate(view, view.model) for view in views if view.model], wanted)


@dataclass
class Burst:
    """Workers that one router gives requests: each choice counts before the next; `live` run, the oldest ends first."""

    policy: Policy
    workers: Mapping[str, dict[str, Any]]
    live: int
    first_turn: int = 0
    chosen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.counts = {name: Outstanding() for name in self.workers}
        self._live: deque[Reservation] = deque()

    def run(self, requests: int, **fields: Any) -> None:
        for number in range(requests):
            self.step(demand(turn=self.first_turn + number, session=f"s{number}", **fields))

    def step(self, wanted: Demand) -> str:
        if len(self._live) >= self.live:
            self._live.popleft().release()
        views = [self.view(name) for name in self.workers]
        best = rank(self.policy, views, wanted)[0].candidate.address
        self._live.append(self.counts[best].reserve(wanted.expected_tokens, wanted.prompt_tokens))
        self.chosen[best] += 1
        return best

    def view(self, name: str) -> ExecutorView:
        count = self.counts[name]
        prefill = count.routed_prefill_tokens
        return executor(name, routed=count.routed_tokens, routed_prefill_tokens=prefill, **self.workers[name])


def equal_workers(number: int, **fields: Any) -> dict[str, dict[str, Any]]:
    return {f"w{i}": fields for i in range(number)}


def check_no_starvation(policy: Policy, workers: int, first_turn: int) -> None:
    """Equal workers, each with some requests at a time: nobody is left out."""
    burst = Burst(policy, equal_workers(workers), live=4 * workers, first_turn=first_turn)
    burst.run(60 * workers, cached_tokens={f"w{i}": 0 for i in range(workers)})
    assert set(burst.chosen) == set(burst.workers)


def check_no_herd_on_equal_stale_scores(policy: Policy, workers: int, turns: Sequence[int]) -> None:
    """Many routers that know the same, each with one request: not all to one worker."""
    views = [executor(f"w{i}", routed=1000) for i in range(workers)]
    cached = {view.address: 8 for view in views}
    chosen = Counter(
        rank(policy, views, demand(turn=turn, session=f"s{turn}", cached_tokens=cached))[0].candidate.address
        for turn in turns
    )
    even = len(turns) / workers
    assert max(chosen.values()) <= 2.5 * even + 5, chosen
