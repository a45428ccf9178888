"""The backend under the faults that TensorRT-LLM is known for."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from adapters_fixture import save_adapter
from contract.engine_contract import SEEDED, Listener, hashes, prompt, request
from fakes.trtllm.llm import LLM, library, never
from fakes.trtllm.results import EngineDeadError, RequestError
from models_fixture import tiny_model
from unit.executor.trtllm.making import config, running, until
from weir_chassis.errors import Internal, InvalidArgument, Overloaded, Unsupported, WeirError, WorkerLost, reason_name
from weir_executor.adapters.files import read_config
from weir_executor.engine_watch import EngineWatch
from weir_executor.foreign import line
from weir_executor.guided.guide import Guide, GuideKind
from weir_executor.request import Sampling, Watermark
from weir_executor.step_output import FinishReason
from weir_executor.trtllm import engine as engine_module
from weir_executor.trtllm.load import load_engine
from weir_executor.trtllm.probe import UnknownVersionError

ROOT = b"contract tests.."  # of `hashes`


class StartedGuide:
    """A guide for an engine with a compiler of its own."""

    def __init__(self, guide: Guide) -> None:
        self.guide = guide

    def start(self) -> Any:
        raise AssertionError("the engine follows it by itself")


def test_every_output_is_a_request_of_its_own_with_all_of_its_sampling_said() -> None:
    with running() as (engine, llm, heard):
        sampling = Sampling(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, seed=9, presence_penalty=0.5)
        engine.submit(request(1, prompt(20), 4, n=3, sampling=sampling, ignore_eos=False, resumed={1: [7, 8]}))
        heard.wait_for_ends(1)
        submitted = llm.submitted[1:]  # after the one that warms up
    assert [len(each["inputs"]) for each in submitted] == [20, 22, 20]
    told = [each["sampling"] for each in submitted]
    assert [each.max_tokens for each in told] == [4, 2, 4]
    assert len({each.seed for each in told}) == 3
    first = told[0]
    assert (first.seed, first.end_id, first.pad_id, first.n, first.detokenize) == (9, 2, 2, 1, False)
    assert (first.temperature, first.top_p, first.top_k, first.min_p) == (0.7, 0.9, 5, 0.1)
    assert (first.presence_penalty, first.prompt_ignore_length) == (0.5, 20)
    assert first.include_stop_str_in_output


def test_greedy_is_said_and_not_left_to_a_default() -> None:
    with running() as (engine, llm, heard):
        engine.submit(request(1, prompt(5), 2, n=2))
        heard.wait_for_ends(1)
        assert [each["sampling"].top_k for each in llm.submitted[1:]] == [1, 1]
    assert heard.tokens[1, 0] == heard.tokens[1, 1]


def test_the_salt_is_the_scope_and_private_where_nothing_is_shared() -> None:
    with running() as (engine, llm, heard):
        known = hashes(prompt(40), 16)
        engine.submit(request(1, prompt(40), 2, block_hashes=known, cache_scope=b"s" * 16))
        engine.submit(request(2, prompt(40), 2))
        engine.submit(request(3, prompt(40), 2))
        heard.wait_for_ends(1, 2, 3)
        salts = [each["salt"] for each in llm.submitted[1:]]
    assert salts[0] == (b"s" * 16).hex()
    assert len(set(salts)) == 3


def test_what_the_engine_refuses_is_the_requests_and_nobody_elses() -> None:
    with running() as (engine, llm, heard):
        llm.generate_async = _raising(ValueError("temperature must be a number\nof some lines"))  # type: ignore[method-assign]
        engine.submit(request(1, prompt(5), 2, n=2))
        (end,) = heard.wait_for_ends(1)
        assert isinstance(end.error, InvalidArgument)
        assert "some lines" not in str(end.error)
        del llm.generate_async
        engine.submit(request(2, prompt(5), 2))
        assert heard.wait_for_ends(2)[0].error is None
        engine.check_health()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotImplementedError("beams"), "UNSUPPORTED"),
        (TypeError("no list"), "INVALID_ARGUMENT"),
        (RequestError("too long"), "INVALID_ARGUMENT"),
        (RuntimeError("LLM is shutting down"), "WORKER_LOST"),
        (Overloaded("ours"), "OVERLOADED"),
        (KeyError("?"), "INTERNAL"),
    ],
)
def test_synchronous_errors_are_told_by_what_they_mean(error: Exception, reason: str) -> None:
    with running() as (engine, llm, heard):
        llm.generate_async = _raising(error)  # type: ignore[method-assign]
        engine.submit(request(1, prompt(5), 2))
        (end,) = heard.wait_for_ends(1)
        assert isinstance(end.error, WeirError)
        assert reason_name(end.error.reason) == reason


def _raising(error: Exception) -> Any:
    def generate_async(**_: Any) -> Any:
        raise error

    return generate_async


def test_a_request_that_fails_fails_alone() -> None:
    with running() as (engine, llm, heard):
        llm.hang()
        engine.submit(request(1, prompt(5), 50, n=2))
        until(lambda: len(llm.submitted) == 3)
        llm.fail(RequestError("out of luck"))
        llm.resume()
        (end,) = heard.wait_for_ends(1)
        assert isinstance(end.error, Internal)
        engine.submit(request(2, prompt(5), 3))
        assert heard.wait_for_ends(2)[0].error is None
        engine.check_health()


def test_an_unknown_error_is_the_engines_end() -> None:
    with running() as (engine, llm, heard):
        engine.submit(request(1, prompt(5), 200))
        heard.wait_for(lambda: heard.tokens[1, 0], "a token")
        llm.fail(KeyError("what is this"))
        _died(engine, heard, KeyError)


def test_a_dead_rank_is_told_by_its_own_error() -> None:
    with running() as (engine, llm, heard):
        engine.submit(request(1, prompt(5), 200))
        engine.submit(request(2, prompt(5), 200, n=4))
        heard.wait_for(lambda: heard.tokens[1, 0], "a token")
        llm.die()
        _died(engine, heard, Exception)
        assert isinstance(heard.wait_for_ends(2)[0].error, WorkerLost)


def test_a_dead_rank_that_leaves_everybody_hanging_is_found_by_its_flag() -> None:
    """Before there was `EngineDeadError`, iterators waited for ever."""
    with running(library(EngineDeadError=None)) as (engine, llm, heard):
        llm.dead_raises = False
        engine.submit(request(1, prompt(5), 200))
        heard.wait_for(lambda: heard.tokens[1, 0], "a token")
        llm.die()
        _died(engine, heard, RuntimeError)


def _died(engine: Any, heard: Any, kind: type[Exception]) -> None:
    (end,) = heard.wait_for_ends(1)
    assert isinstance(end.error, WorkerLost)
    assert end.error.row.retryable
    until(lambda: engine._lives.error is not None)
    with pytest.raises(kind):
        engine.check_health()
    with pytest.raises(WorkerLost):
        engine.submit(request(9, prompt(5), 1))


def test_an_engine_that_says_it_is_not_well_is_dead() -> None:
    well = threading.Event()
    well.set()

    class Asked(LLM):
        def _check_health(self) -> bool:
            return well.is_set()

    with running(library(LLM=Asked)) as (engine, _, heard):
        engine.submit(request(1, prompt(5), 2))
        heard.wait_for_ends(1)
        engine.check_health()
        well.clear()
        until(lambda: engine._lives.error is not None)


def test_a_dead_engine_that_says_so_when_it_is_asked_is_dead() -> None:
    with running() as (engine, llm, heard):
        llm.generate_async = _raising(EngineDeadError("rank 3"))  # type: ignore[method-assign]
        engine.submit(request(1, prompt(5), 2))
        assert isinstance(heard.wait_for_ends(1)[0].error, WorkerLost)
        until(lambda: isinstance(engine._lives.error, EngineDeadError))


def test_words_that_are_not_understood_fail_their_request_and_not_the_engine() -> None:
    """Whoever asks for them again would end the next engine, too."""

    class Strange(LLM):
        def _logprobs(self, request: Any, token_id: int) -> Any:
            return {"the best": token_id}

    with running(library(LLM=Strange)) as (engine, _, heard):
        engine.submit(request(1, prompt(50), 9, n=2, sampling=Sampling(top_logprobs=2)))
        engine.submit(request(2, prompt(5), 9))
        told, well = heard.wait_for_ends(1, 2)
        assert isinstance(told.error, Internal)
        assert "not understood" in str(told.error)
        assert (well.error, well.completion_tokens) == (None, 9)
        engine.check_health()


def test_guesses_that_stand_come_together_and_none_is_lost() -> None:
    wanted: list[list[int]] = []
    for speculation in (None, {"decoding_type": "NGram", "max_draft_len": 3}):
        with running(speculation=speculation) as (engine, _, heard):
            steps: list[int] = []
            heard.on_step = lambda step, steps=steps: steps.extend(  # type: ignore[misc]
                len(output.token_ids) for output in step.outputs
            )
            engine.submit(request(1, prompt(20), 15, n=2, sampling=SEEDED))
            heard.wait_for_ends(1)
            wanted.append([*heard.tokens[1, 0], *heard.tokens[1, 1]])
            until(lambda: engine.load().prefill_tokens >= 20)
            assert (max(steps) > 1, engine.load().draft_tokens > 0) == (speculation is not None,) * 2
    assert wanted[0] == wanted[1]
    assert len(wanted[0]) == 30


def test_a_cancelled_request_keeps_its_place_until_the_engine_has_said_so() -> None:
    with running(max_num_seqs=1) as (engine, llm, heard):
        engine.submit(request(1, prompt(5), 200))
        heard.wait_for(lambda: heard.tokens[1, 0], "a token")
        llm.hang()
        engine.abort(1)
        engine.submit(request(2, prompt(5), 2))
        until(lambda: len(engine.requests()) == 2)
        assert 1 not in heard.ends
        llm.resume()
        heard.wait_for_ends(1, 2)
    assert (1, 0) not in heard.finished


def test_one_that_never_says_so_gives_its_place_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "_ABORT_SECONDS", 0.05)
    monkeypatch.setattr(line, "_LEAVE_SECONDS", 0.5)
    with running(max_num_seqs=1) as (engine, llm, heard):
        engine.submit(request(1, prompt(5), 200))
        heard.wait_for(lambda: heard.tokens[1, 0], "a token")
        llm.hang()
        engine.abort(1)
        assert heard.wait_for_ends(1)[0].error is None
        llm.resume()


def test_lost_events_make_the_index_void_and_no_answer_wrong() -> None:
    with running() as (engine, llm, heard):
        known = hashes(prompt(40), 16)
        shared: dict[str, Any] = {"block_hashes": known, "cache_scope": ROOT}
        engine.submit(request(1, prompt(40), 2, **shared))
        heard.wait_for_ends(1)
        assert engine.cached_prefix_blocks(known) == 2
        with llm._lock:
            llm._pool.store(prompt(64, start=9), "x" * 32, 0)
            llm._pool.lose_events()
            llm._pool.store(prompt(64, start=20), "x" * 32, 0)
        until(lambda: engine.cached_prefix_blocks(known) == 0)
        engine.submit(request(2, prompt(40), 2, **shared))
        assert heard.wait_for_ends(2)[0].cached_prompt_tokens == 32
        heard.stored.clear()


def test_guides_go_only_to_an_engine_that_follows_them() -> None:
    guide = StartedGuide(Guide(GuideKind.JSON_SCHEMA, '{"type": "object"}'))
    with (
        running(guided_backend=None) as (engine, _, _heard),
        pytest.raises(Unsupported, match="guided_decoding_backend"),
    ):
        engine.submit(request(1, prompt(5), 2, guide=guide))


def test_what_the_engine_has_not_is_refused() -> None:
    with running() as (engine, _, _heard):
        marked = Sampling(watermark=Watermark(b"k" * 16))
        with pytest.raises(Unsupported, match="watermark"):
            engine.submit(request(1, prompt(5), 2, sampling=marked))
        with pytest.raises(Unsupported, match="hand_off"):
            engine.submit(request(1, prompt(5), 2, hand_off=True))


def test_adapters_go_by_a_number_that_is_never_used_twice(tmp_path: Any) -> None:
    directory = tmp_path / "law"
    save_adapter(directory, tiny_model("llama3"))
    with running(max_adapters=1) as (engine, llm, heard):
        info = engine.load_adapter("law", directory, read_config(directory, 64), lambda _, __: None)
        assert len(info.fingerprint) == 32
        with pytest.raises(Unsupported):
            engine.load_adapter("more", directory, read_config(directory, 64), lambda _, __: None)
        engine.submit(request(1, prompt(5), 2, adapter="law"))
        heard.wait_for_ends(1)
        engine.unload_adapter("law")
        engine.load_adapter("law", directory, read_config(directory, 64), lambda _, __: None)
        engine.submit(request(2, prompt(5), 2, adapter="law"))
        heard.wait_for_ends(2)
        assert [each["lora"].lora_int_id for each in llm.submitted[1:]] == [1, 2]


def test_the_load_is_what_is_live() -> None:
    with running(max_num_seqs=2) as (engine, llm, heard):
        llm.hang()
        for key in range(4):
            engine.submit(request(key, prompt(20, start=key), 10, sampling=SEEDED))
        until(lambda: engine.load().waiting_requests == 2)
        load = engine.load()
        assert (load.running_sequences, load.outstanding_tokens, load.outstanding_prefill_tokens) == (2, 120, 80)
        assert {state.waiting_reason is None for state in engine.requests()} == {True, False}
        llm.resume()
        heard.wait_for_ends(*range(4))
        until(lambda: engine.load().outstanding_tokens == 0)
        until(lambda: engine.load().prefill_tokens >= 80)


def test_versions_and_arguments_that_nobody_knows_are_refused() -> None:
    with pytest.raises(UnknownVersionError):
        load_engine(config(), library("9.0.0"), end_process=never)
    with pytest.raises(ValueError, match="invalid argument: telepathy"):
        load_engine(config(extra={"telepathy": True}), library(), end_process=never)
    for wrong in (
        {"host_cache_bytes": 1, "connector": True},
        {"connector": True, "pipeline_parallel": 2},
        {"disk_cache_bytes": 1},
    ):
        with pytest.raises(Unsupported):
            load_engine(config(**wrong), library(), end_process=never)


def test_a_finished_engine_leaves_no_thread() -> None:
    before = threading.active_count()
    with running() as (engine, _, heard):
        engine.submit(request(1, prompt(5), 2))
        heard.wait_for_ends(1)
        assert heard.finished[1, 0].finish_reason is FinishReason.LENGTH
    until(lambda: threading.active_count() <= before)
    assert os.getpid()


def test_an_engine_that_does_not_shut_down_is_left_behind_and_takes_the_process_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "_SHUTDOWN_SECONDS", 0.05)
    hung, ended = threading.Event(), threading.Event()

    class Hanging(LLM):
        def shutdown(self) -> None:
            hung.wait()
            super().shutdown()

    engine, heard = load_engine(config(), library(LLM=Hanging), end_process=ended.set), Listener()
    engine.start(heard)
    engine.submit(request(1, prompt(5), 400))
    engine.close()
    assert isinstance(heard.wait_for_ends(1)[0].error, WorkerLost)
    assert ended.wait(30)
    hung.set()


def test_a_dead_engine_is_not_asked_to_shut_down() -> None:
    """It would send to ranks that are gone, and wait for them."""
    asked: list[bool] = []

    class Noted(LLM):
        def shutdown(self) -> None:
            asked.append(True)
            super().shutdown()

    with running(library(LLM=Noted)) as (engine, llm, _):
        llm.die()
        until(lambda: engine._lives.error is not None)
    assert not asked
    with running(library(LLM=Noted)):
        pass
    assert asked


def _stands_still(engine: Any) -> bool:
    before = engine.load().progress
    time.sleep(0.2)  # far longer than a step of the fake
    return bool(engine.load().progress == before)


def test_one_that_stands_still_without_a_word_is_found_by_its_want_of_progress() -> None:
    """As versions do that have no flag, no health and no error for a dead rank."""
    now, nothing = 0.0, cast("Any", None)
    clock: Any = SimpleNamespace(monotonic=lambda: now)
    with running() as (engine, llm, heard):
        watch = EngineWatch(engine, nothing, nothing, clock, hang_seconds=10, show_serving=nothing)
        watch._check_progress(engine.load())
        engine.submit(request(1, prompt(20), 400, n=2))
        heard.wait_for(lambda: heard.tokens[1, 1], "a token of the last output")
        llm.hang()
        now = 100.0
        until(lambda: _stands_still(engine))
        watch._check_progress(engine.load())
        now = 109.0
        watch._check_progress(engine.load())
        now = 111.0
        with pytest.raises(Internal, match="for 10 s"):
            watch._check_progress(engine.load())
        llm.resume()
        engine.abort(1)
        heard.wait_for_ends(1)
