"""Embed calls through a real router and fake workers. `suite` checks at the end that everything is given back."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from fakes import bytes_model
from fakes.executor import FakeExecutor
from fakes.suite import suite
from weir.inference.v1.embedding_pb2 import Pooling
from weir.inference.v1.model_pb2 import ModelVersion
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import Internal, Overloaded, WeirError, reason_name
from weir_chassis.status import from_rpc_error

OTHER_REVISION = ModelVersion(model="bytes", revision="r2", tokenizer_hash="0" * 32)


def request(*texts: str, **fields: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(inputs=[pb.EmbedInput(text=text) for text in texts or ("hello",)], **fields)


async def refusal(call: Any) -> WeirError:
    with pytest.raises(grpc.RpcError) as refused:
        await call
    return from_rpc_error(refused.value)


async def test_what_the_executor_is_given() -> None:
    asked = request("hé", pooling=Pooling.POOLING_MEAN, normalize=False, priority=3)
    asked.inputs.add().token_ids.token_ids.extend([5, 6])
    async with suite() as running:
        answer = await running.router.Embed(asked)
        (given,) = running.executor.embeds
        assert [list(one.token_ids) for one in given.inputs] == [list("hé".encode()), [5, 6]]
        assert (given.model_version, given.priority) == (bytes_model.VERSION, 3)
        assert (given.pooling, given.HasField("normalize"), given.normalize) == (Pooling.POOLING_MEAN, True, False)
        assert given.request_id
        assert (answer.usage.prompt_tokens, answer.model_version) == (5, bytes_model.VERSION)


async def test_an_adapter_goes_by_its_fingerprint() -> None:
    async with suite() as running:
        error = await refusal(running.router.Embed(request(adapter="mine")))
        assert reason_name(error.reason) == "NOT_FOUND"
        running.executor.adapters = {"mine": "f" * 32}
        await running.until(lambda: "mine" in running.fleet.snapshot().executors[0].adapters)
        await running.router.Embed(request(adapter="mine"))
        assert running.executor.embeds[-1].adapter == "f" * 32


async def test_a_tenants_inputs_find_only_blocks_of_its_own_and_of_its_pool() -> None:
    async with suite(cache_pools={"acme": "team"}) as running:
        for tenant in ("acme", "mill"):
            await running.router.Embed(request(), metadata=[("weir-tenant", tenant)])
        await running.router.Embed(request())
        assert [given.tenant_salt for given in running.executor.embeds] == ["team", "mill", ""]


async def test_ids_alone_need_no_tokenizer() -> None:
    async with suite() as running:
        await running.router.Embed(pb.EmbedRequest(inputs=[pb.EmbedInput(token_ids=pb.TokenPrompt(token_ids=[5]))]))
        assert running.fakes.tokenizers[0].calls == 0


async def test_an_input_as_long_as_the_context_fits_and_a_longer_one_is_named() -> None:
    async with suite() as running:
        asked = pb.EmbedRequest(inputs=[pb.EmbedInput(text="y"), pb.EmbedInput()])
        ids = asked.inputs[1].token_ids.token_ids
        ids.extend([5] * bytes_model.MAX_MODEL_LEN)
        assert len((await running.router.Embed(asked)).embeddings) == 2
        ids.append(5)
        error = await refusal(running.router.Embed(asked))
        assert (reason_name(error.reason), error.metadata) == ("PROMPT_TOO_LONG", {"tokens": "513", "limit": "512"})
        assert "inputs[1]" in error.message


@pytest.mark.parametrize("error", [Internal("a bug"), Overloaded("full")])
async def test_another_executor_is_tried_once(error: WeirError) -> None:
    executors = [FakeExecutor(), FakeExecutor()]
    executors[0].refusal = error
    async with suite(executors=executors) as running:
        for _ in range(2):  # whichever of the two has its turn
            assert len((await running.router.Embed(request())).embeddings) == 1
        executors[1].refusal = error
        assert (await refusal(running.router.Embed(request()))).reason == error.reason


async def test_a_worker_that_is_lost_is_replaced_and_named_when_there_is_no_other() -> None:
    async with suite() as running:
        running.executor.step_seconds = 0.01
        call = asyncio.ensure_future(running.router.Embed(request(*["x"] * 200)))
        await running.until(lambda: running.executor.live_embeds == 1)
        running.executor.crash.crash()
        error = await refusal(call)
        assert (reason_name(error.reason), error.metadata) == ("WORKER_LOST", {"worker": "memory:executor-0"})
        running.executor.crash.revive()
        running.executor.step_seconds = 0.0
        await running.until_serving()
        await running.router.Embed(request())


@pytest.mark.parametrize("loopback", [False, True], ids=["memory", "loopback"])
async def test_a_deadline_and_a_cancellation_end_the_call_everywhere(loopback: bool) -> None:
    async with suite(loopback=loopback) as running:
        running.executor.running.clear()
        error = await refusal(running.router.Embed(request(), timeout=0.1))
        assert reason_name(error.reason) == "DEADLINE_EXCEEDED"
        call = running.router.Embed(request())
        task = asyncio.ensure_future(call)
        await running.until(lambda: len(running.executor.embeds) == 2 and running.executor.live_embeds > 0)
        call.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await running.until(lambda: running.executor.live_embeds == 0)


async def test_the_queue_is_the_one_of_all_requests() -> None:
    async with suite(max_running=1, max_waiting=0) as running:
        running.executor.running.clear()
        first = asyncio.ensure_future(running.router.Embed(request()))
        await running.until(lambda: running.executor.live_embeds == 1)
        error = await refusal(running.router.Embed(request()))
        assert reason_name(error.reason) == "OVERLOADED"
        assert error.retry_after is not None
        running.executor.running.set()
        assert len((await first).embeddings) == 1


async def test_what_is_reserved_counts_for_the_next_choice() -> None:
    executors = [FakeExecutor(), FakeExecutor()]
    async with suite(executors=executors) as running:
        for executor in executors:
            executor.running.clear()
        calls = [asyncio.ensure_future(running.router.Embed(request("x" * 100))) for _ in range(4)]
        await running.until(lambda: sum(executor.live_embeds for executor in executors) == 4)
        assert [executor.live_embeds for executor in executors] == [2, 2]
        assert [view.routed_tokens for view in running.fleet.snapshot().executors] == [200, 200]
        for executor in executors:
            executor.running.set()
        await asyncio.gather(*calls)


async def test_an_executor_of_another_revision_is_given_nothing() -> None:
    async with suite(executors=[FakeExecutor(OTHER_REVISION)]) as running:
        error = await refusal(running.router.Embed(request()))
        assert reason_name(error.reason) == "REVISION_MISMATCH"
        assert not running.executor.embeds
