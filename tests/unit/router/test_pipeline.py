"""Whole requests through a real router and fake workers: what happens, and that everything is given back.

`suite` ends each test by checking that no lease is held, that no worker holds a request, and that no count is left.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from contract.router_contract import Answer, collect, refusal
from fakes import bytes_model
from fakes.executor import FakeExecutor
from fakes.postprocess import FakePostprocess
from fakes.suite import Suite, suite
from fakes.tokenizer import FakeTokenizer
from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt, ContentPart
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.output_pb2 import FinishReason
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.kvstore.v1 import block_hash
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    Internal,
    InvalidArgument,
    Overloaded,
    WeirError,
)
from weir_router import encoder

OTHER_REVISION = ModelVersion(model="bytes", revision="r2", tokenizer_hash="0" * 32)


def request(text: str = "hello", **stopping: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=text, stopping=StoppingConditions(**stopping))


def endless() -> pb.GenerateRequest:
    return request(ignore_eos=True)


async def started(
    running: Suite, message: pb.GenerateRequest | None = None
) -> tuple[Any, asyncio.Task[Answer], Answer]:
    """A call whose first delta has come, the task that goes on reading it, and what it has read."""
    call, answer = running.router.Generate(message or endless()), Answer()
    task = asyncio.create_task(collect(call, answer))
    await running.until(lambda: "delta" in answer.kinds)
    return call, task, answer


async def cancelled(call: Any, task: asyncio.Task[Answer]) -> None:
    call.cancel()
    await asyncio.gather(task, return_exceptions=True)


# What comes of a good request.


async def test_a_text_is_answered() -> None:
    async with suite() as running:
        answer = await collect(running.router.Generate(request("wörld")))
        answer.check_complete()
        assert answer.texts == {0: "wörld"}
        assert answer.token_ids[0] == [*"wörld".encode(), bytes_model.EOS]
        assert answer.finished[0].finish_reason == FinishReason.FINISH_REASON_STOP
        assert answer.finished[0].WhichOneof("stopped_by") is None
        assert answer.receipt.timings.HasField("postprocess")
        assert answer.receipt.worker == "memory:executor-0"
        assert answer.receipt.policy == "least_outstanding_tokens"
        (score,) = answer.receipt.scores
        assert (score.worker, dict(score.terms)) == (answer.receipt.worker, {"outstanding_tokens": 0.0, "share": 1.0})


async def test_a_chat_is_answered_through_the_template() -> None:
    messages = [ChatMessage(role=role, content=[ContentPart(text=role)]) for role in ("system", "user")]
    async with suite() as running:
        answer = await collect(running.router.Chat(pb.ChatRequest(prompt=ChatPrompt(messages=messages))))
        answer.check_complete()
        assert answer.texts == {0: "systemuser"}


async def test_the_tenant_reaches_the_executor_by_every_door() -> None:
    metadata = (("weir-tenant", "acme"),)
    chat = pb.ChatRequest(prompt=ChatPrompt(messages=[ChatMessage(role="user", content=[ContentPart(text="x")])]))
    async with suite() as running:
        await collect(running.router.Generate(request("hello"), metadata=metadata))
        await collect(running.router.Chat(chat, metadata=metadata))
        await collect(running.router.Generate(request("hello")))
        assert [submit.tenant for submit in running.executor.submits] == ["acme", "acme", ""]
        await running.router.Embed(pb.EmbedRequest(inputs=[pb.EmbedInput(text="x")]), metadata=metadata)
        assert [embed.tenant for embed in running.executor.embeds] == ["acme"]


async def test_a_tenant_that_is_no_name_is_refused() -> None:
    async with suite() as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(running.router.Generate(request("hello"), metadata=(("weir-tenant", "x" * 129),)))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "weir-tenant" in str(caught.value.details())
        assert not running.executor.submits


async def test_what_the_executor_is_given() -> None:
    message = request("hello", max_tokens=9, stop=["x"], stop_token_ids=[7], include_stop_in_output=True)
    message.sampling.CopyFrom(SamplingParameters(temperature=0.5, seed=11))
    message.priority = 3
    async with suite() as running:
        answer = await collect(running.router.Generate(message, timeout=20))
        (submit,) = running.executor.submits
        assert submit.request_id == answer.receipt.request_id
        assert submit.sampling == SamplingParameters(temperature=0.5, seed=11, n=1)
        assert submit.stopping == StoppingConditions(max_tokens=9, stop_token_ids=[7])
        assert submit.priority == 3
        assert 15 < submit.time_left.ToTimedelta().total_seconds() <= 20
        (opening,) = running.postprocess.opens
        assert (list(opening.stop), opening.include_stop_in_output, opening.n) == (["x"], True, 1)
        assert not opening.HasField("skip_special_tokens")


@pytest.mark.parametrize("kind", ["text", "token_ids"])
async def test_block_hashes_are_those_of_the_contract(kind: str) -> None:
    text = "x" * 40
    message = request(text)
    if kind == "token_ids":
        message.token_ids.token_ids.extend(text.encode())
    async with suite() as running:
        await collect(running.router.Generate(message))
        scope = block_hash.scope_root(block_hash.HashScope("bytes", "r1", "0" * 32))
        expected = block_hash.block_hashes(scope, list(text.encode()), bytes_model.BLOCK_SIZE)
        assert block_hash.split_hashes(running.executor.submits[0].block_hashes) == expected
        assert len(expected) == 2
        assert running.fakes.tokenizers[0].calls == (1 if kind == "text" else 0)


@pytest.mark.parametrize("kind", ["text", "token_ids"])
async def test_an_adapter_goes_by_its_fingerprint_into_the_hashes_and_to_who_holds_it(kind: str) -> None:
    text, executors = "x" * 40, [FakeExecutor(), FakeExecutor(block_size=32), FakeExecutor()]
    executors[1].adapters = {"mine": "f" * 32}
    message = request(text)
    if kind == "token_ids":
        message.token_ids.token_ids.extend(text.encode())
    message.adapter = "mine"
    async with suite(executors=executors) as running:
        for _ in range(3):
            (await collect(running.router.Generate(message))).check_complete()
        assert [len(executor.submits) for executor in executors] == [0, 3, 0]
        submit = executors[1].submits[0]
        assert submit.adapter == "f" * 32
        scope = block_hash.scope_root(block_hash.HashScope("bytes", "r1", "0" * 32, adapter="f" * 32))
        expected = block_hash.block_hashes(scope, list(text.encode()), 32)
        assert block_hash.split_hashes(submit.block_hashes) == expected


async def test_an_adapter_that_comes_and_goes_is_known_soon_and_else_not_found() -> None:
    message = request()
    message.adapter = "mine"
    async with suite() as running:
        for door in (running.router.Generate(message), running.router.Chat(chat_with("mine"))):
            reason, _, error = await refusal(door)
            assert (reason, "'mine'" in error.message) == ("NOT_FOUND", True)
        assert not running.executor.submits
        running.executor.adapters = {"mine": "f" * 32}
        await running.until(lambda: "mine" in running.fleet.snapshot().executors[0].adapters)
        (await collect(running.router.Generate(message))).check_complete()
        (await collect(running.router.Chat(chat_with("mine")))).check_complete()
        running.executor.adapters = {}  # the router has not heard of it yet
        reason, _, _ = await refusal(running.router.Generate(message))
        assert reason == "NOT_FOUND"


async def test_an_executor_that_has_just_unloaded_an_adapter_is_replaced_by_one_that_holds_it() -> None:
    executors = [FakeExecutor(), FakeExecutor()]
    for executor in executors:
        executor.adapters = {"mine": "f" * 32}
    message = request()
    message.adapter = "mine"
    async with suite(executors=executors, load_interval_seconds=60.0) as running:
        # Asked when it is probed and with its first load report: the router will not ask again for a minute.
        await running.until(lambda: all(executor.adapters_told >= 2 for executor in executors))
        executors[0].adapters = {}
        answers = [await collect(running.router.Generate(message)) for _ in range(2)]
        assert sorted(answer.receipt.attempts for answer in answers) == [1, 2]
        assert {answer.receipt.worker for answer in answers} == {"memory:executor-1"}


async def test_tenants_find_each_others_blocks_only_in_a_pool_that_they_share() -> None:
    chat = chat_with("")
    chat.prompt.messages[0].content[0].text = "a prompt of some blocks " * 20
    generate = pb.GenerateRequest(token_ids=pb.TokenPrompt(token_ids=[1] * 100))
    async with suite(cache_pools={"acme": "team", "zoo": "team"}) as running:
        for tenant in ("", "acme", "zoo", "mill"):
            metadata = [("weir-tenant", tenant)] if tenant else None
            (await collect(running.router.Chat(chat, metadata=metadata))).check_complete()
            (await collect(running.router.Generate(generate, metadata=metadata))).check_complete()
        submits = running.executor.submits
    assert [submit.tenant_salt for submit in submits[::2]] == ["", "team", "team", "mill"]
    for alone, first, second, other in (submits[::2], submits[1::2]):
        assert first.block_hashes == second.block_hashes
        assert len({b"", alone.block_hashes, first.block_hashes, other.block_hashes}) == 4


def chat_with(adapter: str) -> pb.ChatRequest:
    messages = [ChatMessage(role="user", content=[ContentPart(text="hello")])]
    return pb.ChatRequest(prompt=ChatPrompt(messages=messages), adapter=adapter)


async def test_hashes_are_recomputed_for_an_executor_with_another_block_size() -> None:
    executors = [FakeExecutor(), FakeExecutor(block_size=32)]
    executors[0].foreign_tokens = 10_000
    async with suite(executors=executors) as running:
        await running.until(lambda: running.fleet.snapshot().executors[0].foreign_tokens > 0)
        await collect(running.router.Generate(request("x" * 40)))
        scope = block_hash.scope_root(block_hash.HashScope("bytes", "r1", "0" * 32))
        expected = block_hash.block_hashes(scope, list(b"x" * 40), 32)
        assert block_hash.split_hashes(executors[1].submits[0].block_hashes) == expected


async def test_outputs_of_one_request_are_their_own() -> None:
    message = request("abcd", max_tokens=4)
    message.sampling.n = 3
    async with suite() as running:
        answer = await collect(running.router.Generate(message))
        answer.check_complete(n=3)
        assert answer.texts == {0: "abcd", 1: "bcda", 2: "cdab"}


async def test_log_probabilities_pass_through() -> None:
    message = request("hé")
    message.sampling.logprobs = 2
    async with suite() as running:
        answer = await collect(running.router.Generate(message))
        entries = answer.logprobs[0]
        assert [(entry.token_id, entry.token) for entry in entries[:2]] == [(104, b"h"), (195, b"\xc3")]
        assert [(top.token_id, top.logprob) for top in entries[0].top] == [(104, 0.0), (105, -1.0)]


async def test_a_stop_string_aborts_its_output_at_the_executor_and_leaves_the_others() -> None:
    message = request("one STOP two", stop=["STOP"], ignore_eos=True, max_tokens=40)
    message.sampling.n = 2
    async with suite() as running:
        running.executor.step_seconds = 0.002
        answer = await collect(running.router.Generate(message))
        answer.check_complete(n=2)
        assert answer.texts == {0: "one ", 1: "ne "}
        assert {finished.stop for finished in answer.finished.values()} == {"STOP"}
        assert not answer.receipt.timings.HasField("postprocess"), "the text was over before the tokens"
        assert answer.usage.completion_tokens == len("one STOP") + len("ne STOP")
        assert [abort.output_index for abort in running.executor.aborts] == [1, 0]


async def test_a_stop_token_is_named() -> None:
    async with suite() as running:
        answer = await collect(running.router.Generate(request("abc", stop_token_ids=[ord("c")])))
        assert answer.finished[0].stop_token_id == ord("c")
        assert answer.texts[0] == "ab"
        assert answer.usage.completion_tokens == 3


async def test_drafts_are_part_of_the_usage() -> None:
    async with suite() as running:
        running.executor.drafts = (8, 5)
        answer = await collect(running.router.Generate(request("hello")))
        assert (answer.usage.draft_tokens, answer.usage.accepted_draft_tokens) == (8, 5)


async def test_usage_comes_although_the_executor_forgets_its_last_word() -> None:
    async with suite(end_wait_seconds=0.05) as running:
        running.executor.forgets_ends = True
        answer = await collect(running.router.Generate(request("hello")))
        answer.check_complete()
        assert answer.usage.completion_tokens == 6


async def test_a_step_of_many_requests_is_one_message_each_way() -> None:
    async with suite() as running:
        running.executor.step_seconds = 0.005
        answers = await asyncio.gather(
            *(collect(running.router.Generate(request(max_tokens=20, ignore_eos=True))) for _ in range(10))
        )
        assert all(len(answer.token_ids[0]) == 20 for answer in answers)
        assert running.executor.max_rows == 10
        assert running.postprocess.messages < 60, "200 tokens in some 20 steps, and the opens"


# Another worker is tried once, before the first token.


async def one_of_two(failing: FakeExecutor) -> Answer:
    """A request that is first routed to `failing`."""
    good = FakeExecutor()
    good.foreign_tokens = 10_000
    async with suite(executors=[failing, good]) as running:
        await running.until(lambda: running.fleet.snapshot().executors[1].foreign_tokens > 0)
        answer = await collect(running.router.Generate(request("hello")))
        answer.check_complete()
        assert len(good.submits) == 1
        return answer


@pytest.mark.parametrize(
    "error", [Overloaded("full"), Draining("going"), Internal("a step failed")], ids=lambda error: type(error).__name__
)
async def test_a_worker_that_refuses_is_replaced(error: WeirError) -> None:
    failing = FakeExecutor()
    failing.refusal = error
    answer = await one_of_two(failing)
    assert answer.texts == {0: "hello"}
    assert (answer.accepted.attempt, answer.receipt.attempts) == (2, 2)
    assert answer.receipt.worker == "memory:executor-1"


async def test_workers_that_drain_cost_a_request_none_of_its_tries() -> None:
    """As in a rolling restart: it comes to several that go, then to one that fails, and then to one that does it."""
    going = [FakeExecutor(), FakeExecutor(), FakeExecutor()]
    for foreign_tokens, fake in enumerate(going):
        fake.foreign_tokens, fake.refusal = 1000 * foreign_tokens, Draining("going")
    failing, good = FakeExecutor(), FakeExecutor()
    failing.foreign_tokens, failing.refusal = 10_000, Internal("a step failed")
    good.foreign_tokens = 20_000
    async with suite(executors=[*going, failing, good]) as running:
        await running.until(lambda: running.fleet.snapshot().executors[4].foreign_tokens > 0)
        answer = await collect(running.router.Generate(request("hello")))
        answer.check_complete()
        assert answer.texts == {0: "hello"}
        assert (answer.receipt.attempts, answer.receipt.worker) == (5, "memory:executor-4")
        assert [len(fake.submits) for fake in (*going, failing, good)] == [1, 1, 1, 1, 1]


async def test_a_worker_that_crashes_before_the_first_token_is_replaced_in_silence() -> None:
    hanging, good = FakeExecutor(), FakeExecutor()
    hanging.pause_after, good.foreign_tokens = 0, 10_000
    async with suite(executors=[hanging, good]) as running:
        await running.until(lambda: running.fleet.snapshot().executors[1].foreign_tokens > 0)
        answer = Answer()
        task = asyncio.create_task(collect(running.router.Generate(request("hello")), answer))
        await running.until(lambda: "accepted" in answer.kinds)
        await asyncio.sleep(0.1)
        hanging.crash.crash()
        (await task).check_complete()
        assert answer.texts == {0: "hello"}
        assert (answer.accepted.attempt, answer.receipt.attempts) == (1, 2)
        assert good.submits[0].sampling.seed == hanging.submits[0].sampling.seed
        first_token = answer.receipt.timings.time_to_first_token.ToTimedelta()
        assert first_token.total_seconds() >= 0.1, "since the client was told that it is accepted"


async def test_a_worker_that_hangs_is_given_up() -> None:
    hanging, good = FakeExecutor(), FakeExecutor()
    hanging.running.clear()
    good.foreign_tokens = 10_000
    async with suite(executors=[hanging, good], no_progress_seconds=0.1) as running:
        await running.until(lambda: running.fleet.snapshot().executors[1].foreign_tokens > 0)
        answer = await collect(running.router.Generate(request("hello")))
        assert answer.receipt.attempts == 2


async def test_a_worker_that_hangs_alone_says_why_it_was_given_up() -> None:
    async with suite(no_progress_seconds=0.1) as running:
        running.executor.running.clear()
        reason, _, error = await refusal(running.router.Generate(request()))
        assert reason == "WORKER_LOST"
        assert error.message == "executor memory:executor-0 was lost: it has made no progress for 0.1 s"


async def test_what_the_client_did_wrong_is_not_tried_again() -> None:
    executors = [FakeExecutor(), FakeExecutor()]
    for executor in executors:
        executor.refusal = InvalidArgument("sampling.top_k", "is not to my taste")
    async with suite(executors=executors) as running:
        reason, _, error = await refusal(running.router.Generate(request()))
        assert reason == "INVALID_ARGUMENT"
        assert "is not to my taste" in error.message
        assert sum(len(executor.submits) for executor in executors) == 1


async def test_two_workers_that_fail_are_enough() -> None:
    executors = [FakeExecutor() for _ in range(3)]
    for executor in executors:
        executor.refusal = Overloaded("full")
    async with suite(executors=executors) as running:
        reason, _, _ = await refusal(running.router.Generate(request()))
        assert reason == "OVERLOADED"
        assert sum(len(executor.submits) for executor in executors) == 2


async def test_with_nobody_else_the_first_failure_is_what_the_client_is_told() -> None:
    async with suite() as running:
        running.executor.refusal = Internal("a step failed")
        reason, _, error = await refusal(running.router.Generate(request()))
        assert (reason, error.message) == ("INTERNAL", "a step failed")


async def test_a_postprocess_replica_that_fails_is_replaced() -> None:
    replicas = [FakePostprocess(), FakePostprocess()]
    replicas[0].error = Internal("no text today")
    async with suite(postprocessors=replicas) as running:
        answers = [await collect(running.router.Generate(request("hello"))) for _ in range(2)]
        assert [answer.texts for answer in answers] == [{0: "hello"}] * 2
        assert sorted(answer.receipt.attempts for answer in answers) == [1, 2]


async def test_a_postprocess_replica_that_is_silent_is_given_up() -> None:
    replicas = [FakePostprocess(), FakePostprocess()]
    replicas[0].silent = True
    async with suite(postprocessors=replicas, no_progress_seconds=0.1) as running:
        answers = [await collect(running.router.Generate(request("hello"))) for _ in range(2)]
        assert [answer.texts for answer in answers] == [{0: "hello"}] * 2


async def test_another_tokenizer_is_asked_when_the_first_fails() -> None:
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    tokenizers[0].error = Internal("no vocabulary")
    async with suite(tokenizers=tokenizers) as running:
        answers = [await collect(running.router.Generate(request("hello"))) for _ in range(2)]
        assert [answer.texts for answer in answers] == [{0: "hello"}] * 2
        assert tokenizers[1].calls == 2


async def test_with_no_other_tokenizer_there_the_first_failure_is_what_the_client_is_told() -> None:
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    tokenizers[0].error = Internal("no vocabulary")
    tokenizers[1].crash.crash()
    async with suite(tokenizers=tokenizers, ready=False) as running:
        await running.until_serving(3)
        reason, _, error = await refusal(running.router.Generate(request()))
        assert (reason, error.message) == ("INTERNAL", "no vocabulary")


async def test_a_tokenizer_that_cancels_is_a_lost_worker_and_not_the_clients_doing() -> None:
    async with suite() as running:
        running.fakes.tokenizers[0].error = Cancelled("its server was stopped")
        reason, _, error = await refusal(running.router.Generate(request()))
        assert (reason, error.metadata) == ("WORKER_LOST", {"worker": "memory:tokenizer-0"})


async def test_a_tokenizer_that_runs_out_of_the_clients_time_is_not_blamed() -> None:
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    for tokenizer in tokenizers:
        tokenizer.error = DeadlineExceeded("a moment before the router's own timer")
    async with suite(tokenizers=tokenizers) as running:
        reason, _, _ = await refusal(running.router.Generate(request(), timeout=20))
        assert reason == "DEADLINE_EXCEEDED"
        assert sum(tokenizer.calls for tokenizer in tokenizers) == 1


async def test_a_prompt_of_too_many_ids_is_refused_before_it_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    monkeypatch.setattr(encoder, "hash_blocks", lambda _version, ids, _size, _adapter, _salt: hashed.append(len(ids)))
    async with suite() as running:
        message = pb.GenerateRequest(token_ids=pb.TokenPrompt(token_ids=[1] * bytes_model.MAX_MODEL_LEN))
        reason, _, error = await refusal(running.router.Generate(message))
        assert (reason, error.metadata) == ("PROMPT_TOO_LONG", {"tokens": "512", "limit": "511"})
    assert not hashed


async def test_a_tokenizer_that_is_too_slow_is_a_lost_worker() -> None:
    async with suite(tokenizer_timeout_seconds=0.05) as running:
        running.fakes.tokenizers[0].delay_seconds = 5.0
        reason, _, error = await refusal(running.router.Generate(request(), timeout=20))
        assert (reason, error.metadata) == ("WORKER_LOST", {"worker": "memory:tokenizer-0"})


# After the first token.


async def test_a_worker_that_is_lost_mid_stream_is_known_at_once() -> None:
    """What becomes of its streams is in test_execution.py."""
    async with suite(executors=[FakeExecutor(), FakeExecutor()]) as running:
        for executor in running.fakes.executors:
            executor.pause_after = 2
        _, task, answer = await started(running)
        (lost,) = [executor for executor in running.fakes.executors if executor.submits]
        lost.crash.crash()
        await running.until(lambda: sum(len(executor.submits) for executor in running.fakes.executors) == 2)
        for executor in running.fakes.executors:
            executor.resume()
        (await task).check_complete()
        assert answer.receipt.continuations == 1
        nxt = await collect(running.router.Generate(request("hello")))
        nxt.check_complete()
        assert nxt.receipt.attempts == 1, "a dead worker is known at once"


async def test_the_status_of_a_lost_worker_names_it() -> None:
    async with suite() as running:
        running.executor.pause_after = 2
        call, task, _ = await started(running)
        running.executor.crash.crash()
        with pytest.raises(grpc.RpcError):
            await task
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        running.executor.resume()
        running.executor.crash.revive()
        await running.until_serving()
        (await collect(running.router.Generate(request("back again")))).check_complete()


async def test_a_lost_worker_is_named_in_the_details() -> None:
    async with suite() as running:
        running.executor.pause_after = 2
        crash = asyncio.get_running_loop().call_later(0.05, running.executor.crash.crash)
        reason, _, error = await refusal(running.router.Generate(endless()))
        crash.cancel()
        assert (reason, error.metadata) == ("WORKER_LOST", {"worker": "memory:executor-0"})


async def test_a_postprocess_replica_that_is_lost_mid_stream_ends_it() -> None:
    async with suite() as running:
        running.executor.step_seconds = 0.002
        crash = asyncio.get_running_loop().call_later(0.05, running.postprocess.crash.crash)
        reason, _, error = await refusal(running.router.Generate(endless()))
        crash.cancel()
        assert (reason, error.metadata) == ("WORKER_LOST", {"worker": "memory:postprocess-0"})
        await running.until(lambda: bool(running.executor.aborts))


# The client's side: cancelling, deadlines, slowness.


@pytest.mark.parametrize("loopback", [False, True], ids=["memory", "loopback"])
async def test_a_client_that_cancels_is_forgotten_everywhere(loopback: bool) -> None:
    async with suite(loopback=loopback) as running:
        running.executor.step_seconds = 0.002
        call, task, _ = await started(running)
        await cancelled(call, task)
        await running.until_idle()
        assert [abort.HasField("output_index") for abort in running.executor.aborts] == [False]
        assert running.postprocess.closed == [running.executor.submits[0].handle]


async def test_cancelling_while_waiting_for_the_tokenizer_takes_no_worker() -> None:
    async with suite() as running:
        running.fakes.tokenizers[0].delay_seconds = 5.0
        call = running.router.Generate(request())
        task = asyncio.create_task(collect(call))
        await running.until(lambda: running.fakes.tokenizers[0].calls == 1)
        await cancelled(call, task)
        await running.until_idle()
        assert not running.executor.submits


@pytest.mark.parametrize("loopback", [False, True], ids=["memory", "loopback"])
async def test_a_deadline_ends_a_request_and_frees_it(loopback: bool) -> None:
    async with suite(loopback=loopback) as running:
        running.executor.pause_after = 2
        for seconds in (0.15, 1.5, 15):  # on a busy machine it may be over before an executor has it
            reason, _, _ = await refusal(running.router.Generate(endless(), timeout=seconds))
            assert reason == "DEADLINE_EXCEEDED"
            await running.until_idle()
            if running.executor.submits:
                break
        assert running.executor.aborts


async def test_a_deadline_ends_the_wait_for_a_place() -> None:
    async with suite(max_running=1) as running:
        running.executor.pause_after = 1
        call, task, _ = await started(running)
        reason, _, _ = await refusal(running.router.Generate(request(), timeout=0.1))
        assert reason == "DEADLINE_EXCEEDED"
        assert len(running.executor.submits) == 1
        await cancelled(call, task)


@pytest.mark.parametrize("loopback", [False, True], ids=["memory", "loopback"])
async def test_a_slow_client_loses_its_stream_and_nobody_elses_waits(loopback: bool) -> None:
    async with suite(loopback=loopback, max_pending_tokens=50) as running:
        message = endless()
        message.sampling.n = 16 if loopback else 1  # enough for the connection's own buffers
        message.sampling.logprobs = 20
        slow = running.router.Generate(message)
        neighbour = await collect(running.router.Generate(request("hello")))
        neighbour.check_complete()
        await running.until(lambda: bool(running.executor.aborts), seconds=20)
        await running.until(lambda: not running.chassis.leases.live())
        reason, _, error = await refusal(slow)
        assert reason == "SLOW_CONSUMER"
        assert "50 tokens" in error.message


# Refusals.


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async with suite(max_running=1, max_waiting=1) as running:
        running.executor.pause_after = 1
        call, task, _ = await started(running)
        waiting = asyncio.create_task(collect(running.router.Generate(request())))
        await running.until(lambda: running.chassis.leases.counts().get("place") == 2)
        reason, _, error = await refusal(running.router.Generate(request()))
        assert reason == "OVERLOADED"
        assert error.retry_after is not None
        assert error.retry_after.total_seconds() > 0
        running.executor.resume()
        await cancelled(call, task)
        (await waiting).check_complete()


async def test_an_empty_fleet_answers_that_it_is_empty() -> None:
    async with suite(executors=[], tokenizers=[], postprocessors=[]) as running:
        reason, _, _ = await refusal(running.router.Generate(request()))
        assert reason == "NO_WORKER"
        assert not (await running.router.ListModels(pb.ListModelsRequest())).models


async def test_a_fleet_without_postprocess_answers_that_nobody_is_there() -> None:
    async with suite(postprocessors=[]) as running:
        reason, _, error = await refusal(running.router.Generate(request()))
        assert reason == "NO_WORKER"
        assert "postprocess" in error.message


async def test_executors_of_another_revision_are_given_nothing() -> None:
    async with suite(executors=[FakeExecutor(OTHER_REVISION)]) as running:
        reason, _, error = await refusal(running.router.Generate(request()))
        assert reason == "REVISION_MISMATCH"
        assert error.metadata == {
            "executor_revision": "r2/000000000000",
            "tokenizer_revision": "r1/000000000000",
        }
        assert not running.executor.submits


async def test_a_mixed_fleet_serves_with_those_that_agree() -> None:
    async with suite(executors=[FakeExecutor(OTHER_REVISION), FakeExecutor()]) as running:
        for _ in range(3):
            (await collect(running.router.Generate(request()))).check_complete()
        assert [len(executor.submits) for executor in running.fakes.executors] == [0, 3]


async def test_a_tokenizer_that_changed_its_revision_unseen_is_a_mismatch() -> None:
    async with suite(load_interval_seconds=30.0) as running:
        running.fakes.tokenizers[0].version = OTHER_REVISION
        reason, _, _ = await refusal(running.router.Generate(request()))
        assert reason == "REVISION_MISMATCH"


# What is counted.


async def test_refusals_attempts_and_tokens_are_counted() -> None:
    async with suite(executors=[FakeExecutor(), FakeExecutor()]) as running:
        await collect(running.router.Generate(request("hello")))
        await refusal(running.router.Generate(pb.GenerateRequest(text="x", model="nobody's")))

        for executor in running.fakes.executors:
            executor.refusal = Overloaded("full")
        await refusal(running.router.Generate(request("hello")))
        sample = running.chassis.metrics.registry.get_sample_value
        assert sample("weir_router_refusals_total", {"reason": "MODEL_NOT_FOUND"}) == 1
        assert sample("weir_router_refusals_total", {"reason": "OVERLOADED"}) == 1
        assert sample("weir_router_attempts_total", {"end": "OK"}) == 1
        assert sample("weir_router_attempts_total", {"end": "OVERLOADED"}) == 2
        assert sample("weir_router_completion_tokens_total") == 6
        assert sample("weir_router_ttft_seconds_count") == 1
        assert sample("weir_router_itl_seconds_count") == 5
        assert sample("weir_router_running_requests") == 0
        assert sample("weir_router_healthy_workers", {"kind": "executor"}) == 2
