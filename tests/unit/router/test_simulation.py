"""The production policies under simulated traffic: what they are for, and what none of them may do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest

from sim.__main__ import simulate
from sim.clock import VirtualTime
from sim.executor import Job, SimExecutor, Spec
from sim.run import Figures
from sim.workloads import WORKLOADS, Workload, chain, churn, conversations, shared_prefixes, stale_bursts
from weir.inference.v1.kv_event_pb2 import KvEvent
from weir_chassis.kv_events.wire import Source
from weir_router.policies.make import POLICIES, PolicyName
from weir_router.prefixes.index import PrefixIndex

SEED = 7
every_policy = pytest.mark.parametrize("policy", POLICIES)


@cache
def workload(name: str) -> Workload:
    return WORKLOADS[name](SEED)


@cache
def figures(policy: PolicyName, name: str) -> Figures:
    return simulate(policy, workload(name), SEED)


@pytest.mark.parametrize("name", ["shared prefixes", "conversations"])
def test_prefix_aware_beats_round_robin_where_prefixes_are_shared(name: str) -> None:
    aware, turns = figures("prefix_aware", name), figures("round_robin", name)
    assert aware.mean_ttft < 0.6 * turns.mean_ttft
    assert aware.cached_share > turns.cached_share


@pytest.mark.parametrize("name", ["nothing shared", "stale bursts", "one hot prefix"])
def test_prefix_aware_is_never_much_worse_than_least_outstanding(name: str) -> None:
    assert figures("prefix_aware", name).mean_ttft <= 1.2 * figures("least_outstanding_tokens", name).mean_ttft


def test_sessions_stay_where_their_blocks_are() -> None:
    hashed, turns = figures("consistent_hashing", "conversations"), figures("round_robin", "conversations")
    assert hashed.mean_ttft < 0.6 * turns.mean_ttft


@every_policy
@pytest.mark.parametrize("name", ["stale bursts", "cold groups"])
def test_no_herd(policy: PolicyName, name: str) -> None:
    """No executor gets a burst: its longest queue is not far above that of strict turns."""
    assert figures(policy, name).peak_waiting <= 1.5 * figures("round_robin", name).peak_waiting + 3


@every_policy
def test_no_death_spiral(policy: PolicyName) -> None:
    """What nine of ten ask for does not make one executor do it all, and leaves nobody idle."""
    found = figures(policy, "one hot prefix")
    assert found.imbalance <= 1.5
    assert min(found.requests.values()) > 0


@every_policy
def test_bounded_imbalance(policy: PolicyName) -> None:
    assert figures(policy, "nothing shared").imbalance <= 1.3
    assert figures(policy, "shared prefixes").imbalance <= 2.0


@every_policy
def test_churn_leaves_nobody_unanswered(policy: PolicyName) -> None:
    found = simulate(policy, churn(SEED, requests=400), SEED)
    assert found.unanswered == 0
    assert len(found.requests) > 8, "others have come"


def test_the_same_seed_gives_the_same_run() -> None:
    for made in (shared_prefixes, stale_bursts, conversations):
        first = simulate("prefix_aware", made(3, requests=100), 3)
        assert first == simulate("prefix_aware", made(3, requests=100), 3)
        assert first.ttft_seconds != simulate("prefix_aware", made(4, requests=100), 3).ttft_seconds


# The simulator itself.


def test_time_passes_from_event_to_event() -> None:
    time, seen = VirtualTime(), list[tuple[str, float]]()
    time.after(2.0, lambda: seen.append(("late", time.now)))
    time.after(1.0, lambda: time.after(0.5, lambda: seen.append(("later", time.now))))
    time.after(1.0, lambda: seen.append(("second of its time", time.now)))
    time.run(1.7)
    assert (seen, time.now) == ([("second of its time", 1.0), ("later", 1.5)], 1.7)
    time.run(3.0)
    assert seen[-1] == ("late", 2.0)


def test_an_executor_takes_the_time_that_its_numbers_say_and_tells_what_it_holds() -> None:
    time, index, first, ended = VirtualTime(), PrefixIndex(1000), list[float](), list[float]()
    index.reset(Source("executor", "e"))

    def tell(name: str, events: Sequence[KvEvent]) -> None:
        index.apply(Source("executor", name), events)

    executor = SimExecutor("e", time, tell, Spec(token_seconds=0.001, step_seconds=0.1, slots=1, cache_blocks=12))
    prompt, other = chain("a", blocks=10), chain("b", blocks=6)

    def job(hashes: tuple[bytes, ...]) -> Job:
        return Job(
            hashes, 16 * len(hashes), 5, lambda: first.append(time.now), lambda: ended.append(time.now), lambda: None
        )

    executor.submit(job(prompt))
    executor.submit(job(prompt))
    assert executor.outstanding_tokens == 2 * 165
    time.run(0.5)
    assert first == [pytest.approx(0.16)]
    assert index.leading_blocks(prompt) == {"e": 10}
    time.run(5.0)
    # The second waits for the only slot, and computes its last token alone.
    assert first[1:] == [pytest.approx(0.16 + 0.5 + 0.001)]
    assert ended == [pytest.approx(0.66), pytest.approx(1.161)]
    executor.submit(job(other))
    time.run(10.0)
    assert index.leading_blocks(other) == {"e": 6}
    assert index.leading_blocks(prompt) == {"e": 6}, "the end of what was used least lately is gone"
    assert executor.outstanding_tokens == 0
