"""The choice is the least loaded of those that may take the request, and equals take turns."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.router.views import DOWN, DRAINING, SERVING, demand, executor, fleet, postprocessor, tokenizer
from weir_chassis.errors import NotFound, NoWorker, PromptTooLong, RevisionMismatch, Unsupported
from weir_router.fleet.outstanding import Outstanding
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.fleet.views import ExecutorView, Role
from weir_router.policies import choose as choosing
from weir_router.policies.choose import Choice, choose_prefill, choose_tokenizer, prefill_workers
from weir_router.policies.least_outstanding import LeastOutstandingTokens
from weir_router.policies.policy import Demand

_POLICY = LeastOutstandingTokens()


def choose(snapshot: FleetSnapshot, wanted: Demand) -> Choice:
    return choosing.choose(snapshot, wanted, _POLICY)


def first(snapshot: FleetSnapshot, wanted: Demand) -> str:
    return choosing.rank_executors(snapshot, wanted, _POLICY)[0].candidate.address


PREFILL, DECODE = Role.PREFILL, Role.DECODE
executors = st.builds(
    executor,
    address=st.sampled_from("abcdefgh"),
    revision=st.sampled_from(["r1", "r2"]),
    model=st.sampled_from(["m", "n"]),
    state=st.sampled_from([SERVING, DRAINING, DOWN]),
    routed=st.integers(0, 5),
    foreign=st.integers(0, 5),
    max_model_len=st.sampled_from([15, 100]),
)
fleets = st.lists(executors, max_size=8, unique_by=lambda view: view.address)


@given(fleets, st.integers(0, 1000), st.frozensets(st.sampled_from("abcdefgh")))
def test_the_choice_is_eligible_and_least_loaded(
    views: list[ExecutorView], turn: int, excluded: frozenset[str]
) -> None:
    wanted = demand(turn=turn, excluded=excluded)
    eligible = {
        view.address: view.outstanding_tokens
        for view in views
        if view.state is SERVING
        and view.model
        and view.model.version == wanted.version
        and view.address not in excluded
        and view.model.max_model_len >= 20
    }
    try:
        choice = choose(fleet(*views), wanted)
    except (NoWorker, RevisionMismatch, PromptTooLong):
        assert not eligible
    else:
        assert eligible[choice.executor] == min(eligible.values())


@given(fleets, st.integers(0, 1000))
def test_the_same_snapshot_and_request_give_the_same_choice(views: list[ExecutorView], turn: int) -> None:
    def attempt() -> object:
        try:
            return choose(fleet(*views), demand(turn=turn))
        except (NoWorker, RevisionMismatch, PromptTooLong) as error:
            return type(error)

    assert attempt() == attempt()


@given(st.integers(1, 6), st.integers(1, 20))
def test_equals_take_turns(workers: int, rounds: int) -> None:
    snapshot = fleet(*(executor(str(i)) for i in range(workers)))
    chosen = Counter(choose(snapshot, demand(turn=turn)).executor for turn in range(workers * rounds))
    assert set(chosen.values()) == {rounds}


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=40), st.integers(1, 5))
def test_a_burst_spreads_because_each_choice_counts_before_the_next(sizes: list[tuple[int, int]], workers: int) -> None:
    counts = {str(i): Outstanding() for i in range(workers)}
    for turn, (prompt_tokens, max_tokens) in enumerate(sizes):
        views = [executor(address, routed=count.routed_tokens) for address, count in counts.items()]
        choice = choose(fleet(*views), demand(prompt_tokens=prompt_tokens, max_tokens=max_tokens, turn=turn))
        counts[choice.executor].reserve(choice.reserved_tokens)
    loads = [count.routed_tokens for count in counts.values()]
    assert max(loads) - min(loads) <= 100, "no worker is ahead by more than one request"


@pytest.mark.parametrize(("max_tokens", "n", "expected"), [(10, 1, 20), (10, 3, 40), (None, 1, 100), (None, 2, 190)])
def test_what_a_request_may_cost(max_tokens: int | None, n: int, expected: int) -> None:
    assert choose(fleet(executor()), demand(max_tokens=max_tokens, n=n)).reserved_tokens == expected


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "field", "tokens", "limit"),
    [(100, None, "prompt", "100", "99"), (120, 1, "prompt", "120", "99"), (99, 2, "stopping.max_tokens", "101", "100")],
)
def test_what_does_not_fit_is_named(
    prompt_tokens: int, max_tokens: int | None, field: str, tokens: str, limit: str
) -> None:
    with pytest.raises(PromptTooLong) as caught:
        choose(fleet(executor()), demand(prompt_tokens=prompt_tokens, max_tokens=max_tokens))
    assert caught.value.field == field
    assert caught.value.metadata == {"tokens": tokens, "limit": limit}


def test_a_vector_is_asked_of_those_that_make_them_and_may_fill_the_whole_context() -> None:
    snapshot = fleet(executor("none", embedding_size=0), executor("makes", routed=50), postprocessors=())
    assert first(snapshot, demand(prompt_tokens=100, max_tokens=0)) == "makes"
    with pytest.raises(PromptTooLong) as caught:
        first(snapshot, demand(prompt_tokens=101, max_tokens=0))
    assert caught.value.metadata == {"tokens": "101", "limit": "100"}
    with pytest.raises(Unsupported):
        first(fleet(executor(embedding_size=0)), demand(max_tokens=0))


def test_only_executors_that_hold_the_adapter_are_chosen() -> None:
    snapshot = fleet(executor("a"), executor("b", routed=50, adapters={"x": "f1"}), executor("c", adapters={"x": "f2"}))
    assert choose(snapshot, demand(adapter="f1")).executor == "b"
    assert choose(snapshot, demand(adapter="f2")).executor == "c"
    assert choose(snapshot, demand(turn=0)).executor == "a"
    with pytest.raises(NotFound):
        choose(snapshot, demand(adapter="f3"))
    with pytest.raises(NoWorker, match="no other executor"):
        choose(snapshot, demand(adapter="f1", excluded=frozenset({"b"})))


def test_a_tokenizer_is_chosen_that_agrees_with_an_executor_which_holds_the_adapter() -> None:
    snapshot = FleetSnapshot(
        (executor("a"), executor("b", revision="r2", adapters={"x": "f1"})),
        (tokenizer("t"), tokenizer("u", revision="r2")),
    )
    chosen = {choose_tokenizer(snapshot, "m", turn=turn, adapter="f1")[0].address for turn in range(4)}
    assert chosen == {"u"}


def test_a_longer_context_takes_what_a_shorter_one_cannot() -> None:
    snapshot = fleet(executor("short", max_model_len=15), executor("long", routed=50))
    assert choose(snapshot, demand()).executor == "long"


def test_a_tokenizer_that_moved_on_is_a_mismatch_not_a_missing_worker() -> None:
    with pytest.raises(RevisionMismatch):
        choose(fleet(executor()), demand(revision="r2"))


def test_the_one_executor_that_failed_is_not_tried_again() -> None:
    with pytest.raises(NoWorker):
        choose(fleet(executor("a")), demand(excluded=frozenset({"a"})))


def test_postprocess_is_chosen_by_our_requests_on_it() -> None:
    replicas = (postprocessor("p", live=3), postprocessor("q", live=2), postprocessor("r", state=DOWN))
    assert choose(fleet(executor(), postprocessors=replicas), demand()).postprocessor == "q"
    with pytest.raises(NoWorker):
        choose(fleet(executor(), postprocessors=replicas[2:]), demand())


def test_tokenizers_take_turns_and_each_comes_with_an_executor_that_agrees() -> None:
    snapshot = FleetSnapshot(
        (executor("a"), executor("b", revision="r2", block_size=32)),
        (tokenizer("t"), tokenizer("u", revision="r2"), tokenizer("v", revision="r3"), tokenizer("w", state=DOWN)),
    )
    chosen = [choose_tokenizer(snapshot, "m", turn=turn) for turn in range(4)]
    assert [(view.address, model.block_size) for view, model in chosen] == [("t", 16), ("u", 32), ("t", 16), ("u", 32)]
    with pytest.raises(NoWorker):
        choose_tokenizer(replace(snapshot, tokenizers=snapshot.tokenizers[3:]), "m", turn=0)


def prefill_of(*executors: ExecutorView, min_tokens: int = 1, **fields: Any) -> str | None:
    """Who computes the prompt for whom `choose` has chosen."""
    snapshot, wanted = fleet(*executors), demand(**fields)
    choice = choose(snapshot, wanted)
    return choose_prefill(choice, wanted, prefill_workers(snapshot, wanted, choice, min_tokens), _POLICY).prefill


@given(
    st.lists(st.tuples(st.sampled_from(Role), st.integers(0, 3)), min_size=1, max_size=6),
    st.integers(0, 10),
    st.integers(1, 60),
)
def test_who_only_prefills_is_never_chosen_for_the_whole_and_who_decodes_never_for_the_prompt(
    workers: list[tuple[Role, int]], turn: int, min_tokens: int
) -> None:
    executors = [executor(f"e{i}", role=role, routed=load) for i, (role, load) in enumerate(workers)]
    by_address = {view.address: view for view in executors}
    snapshot, wanted = fleet(*executors), demand(turn=turn, prompt_tokens=30)
    if all(role is PREFILL for role, _ in workers):
        with pytest.raises(NoWorker, match="only prefill"):
            choose(snapshot, wanted)
        return
    choice = choose(snapshot, wanted)
    assert by_address[choice.executor].decodes
    prefill = choose_prefill(choice, wanted, prefill_workers(snapshot, wanted, choice, min_tokens), _POLICY).prefill
    prefills = [view for view in executors if view.role is PREFILL]
    assert (prefill is not None) == (bool(prefills) and min_tokens <= 30)
    if prefill is not None:
        assert by_address[prefill].role is PREFILL
        assert by_address[prefill].outstanding_tokens == min(view.outstanding_tokens for view in prefills)


def test_a_prompt_is_computed_elsewhere_only_where_its_blocks_are_of_use() -> None:
    decode = executor("d", role=DECODE)
    assert prefill_of(decode, executor("pre", role=PREFILL)) == "pre"
    assert prefill_of(decode, executor("pre", role=PREFILL, block_size=32)) is None
    assert prefill_of(decode, executor("pre", role=PREFILL, max_model_len=15)) is None
    assert prefill_of(decode, executor("pre", role=PREFILL, state=DRAINING)) is None
    assert prefill_of(decode, executor("pre", role=PREFILL), excluded=frozenset({"pre"})) is None
    assert prefill_of(decode, executor("pre", role=PREFILL), min_tokens=11) is None
    fine_tuned = {"mine": "f" * 32}
    decode = executor("d", role=DECODE, adapters=fine_tuned)
    assert prefill_of(decode, executor("pre", role=PREFILL), adapter="f" * 32) is None
    assert prefill_of(decode, executor("pre", role=PREFILL, adapters=fine_tuned), adapter="f" * 32) == "pre"


def test_a_vector_may_come_from_any_role() -> None:
    assert first(fleet(executor("pre", role=PREFILL)), demand(max_tokens=0)) == "pre"


def test_who_has_asked_for_a_prompt_gets_it_unless_it_has_gone() -> None:
    able = [executor("a", role=PREFILL, routed=5), executor("b", role=PREFILL)]
    wanted = demand(cached_tokens={"a": 8})
    choice = choose(fleet(executor("d", role=DECODE)), wanted)
    chosen = [choose_prefill(choice, wanted, able, _POLICY, assigned) for assigned in ("a", "b", "c", None)]
    assert [(one.prefill, one.uncached_tokens) for one in chosen] == [("a", 2), ("b", 10), ("b", 10), ("b", 10)]
    assert choose_prefill(choice, wanted, [], _POLICY, "a") == choice


def test_a_new_worker_fills_to_its_share_of_what_the_others_have() -> None:
    new = replace(executor("new"), ramp=0.1)
    old = executor("old", routed=1000)
    assert first(fleet(new, old), demand(prompt_tokens=10)) == "new"
    assert first(fleet(replace(new, routed_tokens=200), old), demand(prompt_tokens=10)) == "old"
    assert first(fleet(new, executor("old")), demand(prompt_tokens=10)) == "old", "an idle one that is warm is better"


def test_a_tokenizer_of_the_named_revision_is_asked() -> None:
    snapshot = fleet(
        executor("a"), executor("b", revision="r2"), tokenizers=(tokenizer("t"), tokenizer("u", revision="r2"))
    )
    for turn in range(3):
        chosen, model = choose_tokenizer(snapshot, "m", turn=turn, revision="r2")
        assert (chosen.address, model.version.revision) == ("u", "r2")
