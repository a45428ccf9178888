"""Outputs of a server that fails, falls silent, goes on for ever, and ends without a word."""

from __future__ import annotations

from contextlib import ExitStack

import grpc
import pytest

from contract.engine_contract import SEEDED, hashes, prompt, request
from fakes.openengine.double import Traits
from unit.executor.openengine.making import running, serving, using
from unit.executor.trtllm.making import until
from weir.openengine.v1 import openengine_pb2 as pb
from weir_chassis.errors import WeirError, reason_name
from weir_executor.openengine import work
from weir_executor.step_output import FinishReason


def reason_of(error: Exception | None) -> str:
    assert isinstance(error, WeirError), error
    return reason_name(error.reason)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
        (grpc.StatusCode.PERMISSION_DENIED, "INTERNAL"),
    ],
)
def test_a_request_that_is_refused_is_refused_alone(code: grpc.StatusCode, reason: str) -> None:
    with running() as (engine, double, heard):
        double.traits.refuses_with = code
        engine.submit(request(1, prompt(5), 4, n=2))
        (end,) = heard.wait_for_ends(1)
        assert reason_of(end.error) == reason
        assert "prompt" not in str(end.error)
        double.traits.refuses_with = None
        engine.submit(request(2, prompt(5), 4))
        assert heard.wait_for_ends(2)[0].error is None
        engine.check_health()


@pytest.mark.parametrize(
    ("code", "reason"), [(pb.ERROR_CODE_INTERNAL, "INTERNAL"), (pb.ERROR_CODE_OVERLOADED, "OVERLOADED")]
)
def test_a_request_that_fails_in_mid_stream_takes_its_siblings_with_it(
    code: pb.ErrorCode.ValueType, reason: str
) -> None:
    with running(Traits(fails_once=True)) as (engine, double, heard):
        double.llm.step_seconds = 0.002
        double.traits.fails_with = pb.EngineError(code=code, message="no luck")
        engine.submit(request(1, prompt(5), 400, n=2))
        (end,) = heard.wait_for_ends(1)
        assert (reason_of(end.error), heard.finished) == (reason, {})
        assert len(double.traits.aborted) == 1, "its sibling"
        until(lambda: not double.num_active)


def test_a_stream_that_ends_without_a_last_word_has_failed() -> None:
    with running() as (engine, double, heard):
        double.traits.breaks_off = True
        engine.submit(request(1, prompt(5), 8))
        (end,) = heard.wait_for_ends(1)
        assert (reason_of(end.error), end.error.row.retryable) == ("INTERNAL", True)  # type: ignore[union-attr]
        assert not heard.finished


def test_words_on_another_request_are_given_to_nobody() -> None:
    with running() as (engine, double, heard):
        double.traits.mixes_up = True
        engine.submit(request(1, prompt(5), 8))
        (end,) = heard.wait_for_ends(1)
        assert (reason_of(end.error), heard.tokens[1, 0]) == ("INTERNAL", [])
        until(lambda: not double.num_active)


def test_a_last_word_that_does_not_come_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_LAST_WORD_SECONDS", 0.2)
    with running() as (engine, double, heard):
        double.traits.keeps_last_word = True
        engine.submit(request(1, prompt(5), 8))
        (end,) = heard.wait_for_ends(1)
        assert (end.error, end.completion_tokens) == (None, 8)
        assert heard.finished[1, 0].finish_reason is FinishReason.LENGTH
        until(lambda: not double.num_active)


def test_a_server_that_knows_no_end_is_ended_by_us() -> None:
    with running() as (engine, double, heard):
        engine.submit(request(1, prompt(12), 16, sampling=SEEDED))
        heard.wait_for_ends(1)
        tokens = heard.tokens[1, 0]
        double.traits.goes_on = True
        engine.submit(request(2, prompt(12), 16, sampling=SEEDED))
        engine.submit(request(3, prompt(12), 16, sampling=SEEDED, stop_token_ids=frozenset({tokens[5]})))
        heard.wait_for_ends(2, 3)
        assert (heard.tokens[2, 0], heard.finished[2, 0].finish_reason) == (tokens, FinishReason.LENGTH)
        assert heard.tokens[3, 0] == tokens[: tokens.index(tokens[5]) + 1]
        assert heard.finished[3, 0].stop_token_id == tokens[5]
        until(lambda: not double.num_active)


def test_an_abort_is_sent_and_the_others_go_on() -> None:
    with running() as (engine, double, heard):
        double.llm.step_seconds = 0.002
        engine.submit(request(1, prompt(5), 400))
        engine.submit(request(2, prompt(6), 30))
        heard.wait_for(lambda: heard.tokens[1, 0] and heard.tokens[2, 0], "a token of each")
        engine.abort(1)
        heard.wait_for_ends(1, 2)
        ids = {tuple(each.token_ids.ids): each.request_id for each in double.traits.seen}
        assert double.traits.aborted == [ids[tuple(prompt(5))]]
        assert (len(heard.tokens[2, 0]), len(heard.tokens[1, 0]) < 400) == (30, True)
        until(lambda: not double.num_active)


def test_one_output_is_aborted_alone() -> None:
    with running() as (engine, double, heard):
        double.llm.step_seconds = 0.002
        engine.submit(request(1, prompt(5), 40, n=2, sampling=SEEDED))
        heard.wait_for(lambda: heard.tokens[1, 0] and heard.tokens[1, 1], "a token of each")
        engine.abort(1, 0)
        heard.wait_for_ends(1)
        assert (len(heard.tokens[1, 1]), (1, 0) in heard.finished) == (40, False)
        assert len(double.traits.aborted) == 1


def test_a_server_that_promises_an_end_and_goes_on_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_ABORT_SECONDS", 0.1)
    with running() as (engine, double, heard):
        double.llm.step_seconds = 0.01
        double.traits.ignores_aborts = True
        engine.submit(request(1, prompt(5), 400))
        heard.wait_for(lambda: heard.tokens[1, 0], "a token")
        engine.abort(1)
        heard.wait_for_ends(1)
        until(lambda: not double.num_active)


def test_a_request_of_which_nothing_is_said_is_lost_and_so_is_a_server_that_draws_nothing() -> None:
    with running(stall_seconds=0.3) as (engine, double, heard):
        double.traits.says_nothing = True
        engine.submit(request(1, prompt(5), 8))
        assert reason_of(heard.wait_for_ends(1)[0].error) == "WORKER_LOST"
        until(lambda: engine.load().away)
        double.traits.says_nothing = False
        until(lambda: not engine.load().away)
        engine.submit(request(2, prompt(5), 8))
        assert heard.wait_for_ends(2)[0].error is None


def test_what_shares_no_blocks_shares_none_with_other_clients_of_the_server_either() -> None:
    """Their numbers begin where ours do."""
    with serving() as double, ExitStack() as stack:
        for _ in range(2):
            engine, heard = stack.enter_context(using(double))
            engine.submit(request(1, prompt(40), 2))
            heard.wait_for_ends(1)
        salts = [each.kv.cache_salt for each in double.traits.seen if len(each.token_ids.ids) == 40]
        assert len(set(salts)) == 2
        assert len({each.request_id for each in double.traits.seen}) == len(double.traits.seen)


def test_cached_tokens_are_those_that_the_server_counts() -> None:
    known = hashes(prompt(40), 16)
    with running() as (engine, _, heard):
        for key in (1, 2):
            engine.submit(request(key, prompt(40), 4, block_hashes=known, cache_scope=b"contract tests.."))
            heard.wait_for_ends(key)
        assert [heard.ends[key].cached_prompt_tokens for key in (1, 2)] == [0, 32]


def test_priorities_go_to_a_server_that_knows_them_and_to_no_other() -> None:
    for knows in (True, False):
        with running(Traits(knows_priority=knows)) as (engine, double, heard):
            engine.submit(request(1, prompt(5), 2, priority=7))
            assert heard.wait_for_ends(1)[0].error is None
            told = [each.get("openengine-priority") for each in double.traits.metadata]
            assert told[-1] == ("7" if knows else None)
