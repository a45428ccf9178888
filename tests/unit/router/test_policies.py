"""Every policy by name: the contract of all, and what each promises of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unit.router import policy_contract as contract
from unit.router.policy_contract import Burst, demands, equal_workers, fleets, rank
from unit.router.views import demand, executor
from weir_router.fleet.views import ExecutorView, Load, Price
from weir_router.policies.consistent_hashing import ConsistentHashing, ConsistentHashingOptions
from weir_router.policies.make import POLICIES, PolicyName, PolicyOptions, make_policy
from weir_router.policies.policy import Demand, Policy
from weir_router.policies.prefix_aware import PrefixAware, PrefixAwareOptions
from weir_router.policies.round_robin import due_times

every_policy = pytest.mark.parametrize("name", POLICIES)
quick = settings(max_examples=60)
turns = st.integers(0, 2**40)


def named(name: PolicyName) -> Policy:
    policy = make_policy(PolicyOptions(policy=name))
    assert policy.name == name
    return policy


def first(policy: Policy, views: Sequence[ExecutorView], wanted: Demand) -> str:
    return rank(policy, views, wanted)[0].candidate.address


# What all of them promise.


@every_policy
@quick
@given(fleets, demands)
def test_never_a_dead_or_incapable_worker(name: PolicyName, views: list[ExecutorView], wanted: Demand) -> None:
    contract.check_never_a_dead_or_incapable_worker(named(name), views, wanted)


@every_policy
@quick
@given(fleets, demands)
def test_every_candidate_is_ranked_once(name: PolicyName, views: list[ExecutorView], wanted: Demand) -> None:
    contract.check_every_candidate_is_ranked_once(named(name), views, wanted)


@every_policy
@quick
@given(fleets, demands)
def test_determinism(name: PolicyName, views: list[ExecutorView], wanted: Demand) -> None:
    contract.check_determinism(named(name), views, wanted)


@every_policy
@settings(max_examples=10)
@given(st.integers(1, 6), turns)
def test_no_starvation(name: PolicyName, workers: int, first_turn: int) -> None:
    contract.check_no_starvation(named(name), workers, first_turn)


@every_policy
@settings(max_examples=10)
@given(st.integers(2, 12), st.integers(0, 2**32))
def test_no_herd_on_equal_stale_scores(name: PolicyName, workers: int, seed: int) -> None:
    random = Random(seed)
    contract.check_no_herd_on_equal_stale_scores(named(name), workers, [random.getrandbits(40) for _ in range(300)])


# Bounded imbalance, each by its own bound.


@quick
@given(st.integers(1, 8), turns, st.integers(1, 100))
def test_bounded_imbalance_of_round_robin(workers: int, first_turn: int, requests: int) -> None:
    burst = Burst(named("round_robin"), equal_workers(workers), live=10, first_turn=first_turn)
    burst.run(requests)
    chosen = [burst.chosen[worker] for worker in burst.workers]
    assert max(chosen) - min(chosen) <= 1


@quick
@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=8), st.integers(0, 10**6), st.integers(1, 200))
def test_bounded_imbalance_of_weighted_round_robin(weights: list[float], first_turn: int, requests: int) -> None:
    workers = {f"w{i}": {"weight": weight} for i, weight in enumerate(weights)}
    burst = Burst(named("weighted_round_robin"), workers, live=10, first_turn=first_turn)
    burst.run(requests)
    for worker, weight in zip(workers, weights, strict=True):
        part = weight / sum(weights)
        # At the beginning and at the end, it may be half a turn and half of everybody's rounding from its part.
        assert abs(burst.chosen[worker] - requests * part) <= 1 + len(weights) * part + 1e-6


def test_weighted_round_robin_is_smooth() -> None:
    policy, views = named("weighted_round_robin"), [executor("a", weight=5), executor("b"), executor("c")]
    chosen = "".join(first(policy, views, demand(turn=turn)) for turn in range(14))
    assert Counter(chosen[:7]) == {"a": 5, "b": 1, "c": 1}
    assert chosen[:7] == chosen[7:], "a whole round is like the one before"
    assert "aaaa" not in chosen


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 200))
def test_the_schedule_of_a_turn_is_that_of_all_turns_before_it(weights: list[int], turn: int) -> None:
    """The oracle takes the turns one by one."""
    taken = [0] * len(weights)

    def due() -> list[float]:
        return [(k + (i + 0.5) / len(weights)) / w for i, (k, w) in enumerate(zip(taken, weights, strict=True))]

    for _ in range(turn):
        taken[due().index(min(due()))] += 1
    assert due_times(weights, turn) == due()


@quick
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=60), st.integers(1, 6))
def test_bounded_imbalance_of_least_outstanding_tokens(sizes: list[tuple[int, int]], workers: int) -> None:
    burst = Burst(named("least_outstanding_tokens"), equal_workers(workers), live=1000)
    for turn, (prompt_tokens, max_tokens) in enumerate(sizes):
        burst.step(demand(prompt_tokens=prompt_tokens, max_tokens=max_tokens, turn=turn))
    owed = [count.routed_tokens for count in burst.counts.values()]
    assert max(owed) - min(owed) <= max(map(sum, sizes)), "no worker is ahead by more than one request"


@settings(max_examples=10)
@given(turns)
def test_bounded_imbalance_of_power_of_two_choices(first_turn: int) -> None:
    burst = Burst(named("power_of_two_choices"), equal_workers(10), live=10**6, first_turn=first_turn)
    burst.run(1000)
    # One choice would leave some worker 30 ahead; two leave it ln ln 10 / ln 2 and a constant.
    assert max(burst.chosen.values()) <= 100 + 8


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3000)), min_size=1, max_size=80), st.integers(1, 6))
def test_bounded_imbalance_of_consistent_hashing(requests: list[tuple[int, int]], workers: int) -> None:
    """Four sessions ask for all of it."""
    options = ConsistentHashingOptions(load_bound=1.25, spare_tokens=1000)
    burst = Burst(ConsistentHashing(options), equal_workers(workers), live=10**6)
    for session, tokens in requests:
        wanted = demand(prompt_tokens=1, max_tokens=tokens, session=f"s{session}")
        worker = burst.step(wanted)
        owed = [count.routed_tokens for count in burst.counts.values()]
        before = burst.counts[worker].routed_tokens - wanted.expected_tokens
        assert before <= max(1000, 1.25 * sum(owed) / workers)


@quick
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=80), st.integers(1, 6), turns)
def test_bounded_imbalance_of_prefix_aware(sizes: list[int], workers: int, first_turn: int) -> None:
    """One worker holds every prompt, and is not given all of them for that."""
    options = PrefixAwareOptions(load_bound=2.0, spare_tokens=1000)
    burst = Burst(PrefixAware(options), equal_workers(workers), live=10**6, first_turn=first_turn)
    for number, tokens in enumerate(sizes):
        cached = {worker: tokens if worker == "w0" else 0 for worker in burst.workers}
        wanted = demand(prompt_tokens=tokens, max_tokens=10, turn=first_turn + number, cached_tokens=cached)
        worker = burst.step(wanted)
        even = sum(count.routed_tokens for count in burst.counts.values()) / workers
        assert burst.counts[worker].routed_tokens <= 2.0 * max(even, 1000 + wanted.expected_tokens)


def test_bounded_imbalance_of_cheapest() -> None:
    """The cheap one is not given more than it can begin in time, nor is a request's own limit forgotten."""
    load = Load(1, 1, 0.0, prefill_token_seconds=0.001)
    prices = {"cheap": Price(10**6, 0, 0), "dear": Price(10**7, 0, 0)}
    workers = {name: {"price": price, "load": load} for name, price in prices.items()}
    burst = Burst(named("cheapest"), workers, live=10**6)
    burst.run(4, prompt_tokens=300)
    assert burst.chosen == {"cheap": 4}, "the last of them waits for 900 tokens"
    burst.run(4, prompt_tokens=300)
    assert burst.chosen == {"cheap": 4, "dear": 4}
    burst.run(10, prompt_tokens=300)
    assert burst.chosen == {"cheap": 9, "dear": 9}, "where everybody is late, whoever is least so"
    assert first(burst.policy, [burst.view("cheap"), executor("d", load=load)], demand(max_ttft_seconds=0.1)) == "d"


# Shares.


@every_policy
@settings(max_examples=5)
@given(turns)
def test_a_new_worker_gets_a_part_of_its_part(name: PolicyName, first_turn: int) -> None:
    workers = {**equal_workers(3), "new": {"ramp": 0.25}}
    burst = Burst(named(name), workers, live=100, first_turn=first_turn)
    burst.run(600, prompt_tokens=100, max_tokens=400, cached_tokens=dict.fromkeys(workers, 0))
    others = (600 - burst.chosen["new"]) / 3
    assert 0 < burst.chosen["new"] < 0.75 * others, burst.chosen


@pytest.mark.parametrize("name", ["least_outstanding_tokens", "weighted_round_robin", "prefix_aware"])
def test_a_worker_of_twice_the_weight_gets_about_twice_as_much(name: PolicyName) -> None:
    burst = Burst(named(name), {"one": {}, "two": {"weight": 2.0}}, live=60)
    burst.run(600, prompt_tokens=100, max_tokens=400, cached_tokens={"one": 0, "two": 0})
    assert 330 <= burst.chosen["two"] <= 470


# Consistent hashing.

names = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=8, unique=True)


@quick
@given(names, st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=40, unique=True))
def test_minimal_movement_on_membership_change(workers: list[str], sessions: list[str]) -> None:
    """Who leaves takes only its own sessions with it; who comes takes only what is then its own."""
    policy = named("consistent_hashing")

    def homes(members: list[str]) -> dict[str, str]:
        views = [executor(name) for name in members]
        return {session: first(policy, views, demand(session=session)) for session in sessions}

    whole, without = homes(workers), homes(workers[1:])
    assert all(without[session] == home for session, home in whole.items() if home != workers[0])
    assert homes(list(reversed(workers))) == whole, "the order in which workers are known is of no matter"


def test_sessions_are_spread_by_weight() -> None:
    views = [executor("a"), executor("b"), executor("c", weight=2.0)]
    policy = named("consistent_hashing")
    chosen = Counter(first(policy, views, demand(session=f"s{i}")) for i in range(2000))
    assert 400 < chosen["a"] < 600
    assert 400 < chosen["b"] < 600
    assert 900 < chosen["c"] < 1100


def test_a_session_stays_until_its_worker_has_too_much_and_then_goes_to_its_second() -> None:
    policy = named("consistent_hashing")
    order = [s.candidate.address for s in rank(policy, [executor(n) for n in "abcd"], demand(session="s"))]
    busy = [executor(n, routed=20_000 if n == order[0] else 0) for n in "abcd"]
    assert first(policy, busy, demand(session="s")) == order[1]
    spared = [executor(n, routed=4000 if n == order[0] else 0) for n in "abcd"]
    assert first(policy, spared, demand(session="s")) == order[0]


def test_what_has_no_session_goes_to_the_least_loaded() -> None:
    assert first(named("consistent_hashing"), [executor("a", routed=1), executor("b")], demand()) == "b"


# Prefix-aware.

FAST = Load(1, 1, 0.0, prefill_token_seconds=1e-4)


def test_the_worker_that_holds_the_prompt_is_preferred_while_it_is_not_busier() -> None:
    policy = PrefixAware(PrefixAwareOptions(explore=0.0))
    views = [executor("a", load=FAST), executor("b", load=FAST)]
    wanted = demand(prompt_tokens=1000, cached_tokens={"a": 0, "b": 800})
    best = rank(policy, views, wanted)[0]
    assert best.candidate.address == "b"
    assert best.terms["prefill_seconds"] == pytest.approx(0.02)
    # A queue that takes longer than what the cache saves.
    views = [executor("a", load=FAST), executor("b", load=FAST, routed_prefill_tokens=900)]
    assert first(policy, views, wanted) == "a"


def test_no_cache_pulls_an_overloaded_worker_down() -> None:
    policy = PrefixAware(PrefixAwareOptions(explore=0.0))
    views = [executor("a", load=FAST, routed=40_000), executor("b", load=FAST), executor("c", load=FAST)]
    wanted = demand(prompt_tokens=2000, cached_tokens={"a": 1999, "b": 0, "c": 0})
    ranked = rank(policy, views, wanted)
    assert ranked[-1].candidate.address == "a"
    assert ranked[-1].terms["excess"] >= 1.0


def test_no_cache_sends_a_prompt_to_wait_for_blocks() -> None:
    policy = PrefixAware(PrefixAwareOptions(explore=0.0))
    full = replace(FAST, waiting_requests=2, free_blocks=10, total_blocks=1000)
    wanted = demand(prompt_tokens=2000, cached_tokens={"a": 1600, "b": 0})
    assert first(policy, [executor("a", load=full), executor("b", load=FAST)], wanted) == "b"
    for better in ({"free_blocks": 25}, {"waiting_requests": 0}, {"total_blocks": 0}):
        views = [executor("a", load=replace(full, **better)), executor("b", load=FAST)]
        assert first(policy, views, wanted) == "a"
    assert first(policy, [executor("a", load=full), executor("b", load=full)], wanted) == "a", "all alike"


def test_without_any_index_it_is_the_least_outstanding_and_one_without_holds_nothing() -> None:
    policy = PrefixAware(PrefixAwareOptions(explore=0.0))
    views = [executor("a", routed=9, routed_prefill_tokens=0), executor("b", routed=5, routed_prefill_tokens=5)]
    assert list(rank(policy, views, demand())) == list(rank(named("least_outstanding_tokens"), views, demand()))
    assert first(policy, views, demand(prompt_tokens=500, cached_tokens={"a": 400})) == "a"


def test_a_few_requests_explore() -> None:
    policy = PrefixAware(PrefixAwareOptions(explore=0.05))
    views = [executor(name, load=FAST) for name in "abcde"]
    cached = {name: 900 if name == "a" else 0 for name in "abcde"}
    chosen = Counter(
        first(policy, views, demand(prompt_tokens=1000, turn=i, cached_tokens=cached)) for i in range(2000)
    )
    assert 40 <= 2000 - chosen["a"] <= 130, "four fifths of a twentieth go elsewhere"


# Cheapest.


def test_the_cheapest_is_chosen_and_equal_prices_go_by_load() -> None:
    policy = named("cheapest")
    a, b, c = Price(10, 1, 100), Price(20, 20, 20), Price(20, 20, 20)
    views = [executor("a", price=a), executor("b", price=b, routed=5), executor("c", price=c), executor("free")]
    wanted = demand(prompt_tokens=50, max_tokens=20)
    ranked = [scored.candidate.address for scored in rank(policy, views, wanted)]
    assert ranked == ["c", "b", "a", "free"]
    assert [scored.score for scored in rank(policy, views, wanted)[2:]] == [(50 * 10 + 20 * 100) / 1e6, inf]
    held = demand(prompt_tokens=10**6, max_tokens=1, cached_tokens={"a": 10**6})
    assert rank(policy, views, held)[0].candidate.address == "a"
