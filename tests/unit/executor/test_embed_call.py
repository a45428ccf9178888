"""Many inputs, one call: what of them is queued, refused, failed or left, and what of it the caller hears."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from contract.executor_contract import calling, embed, prompt_of, until_idle
from unit.executor.test_servicer import house, until
from weir.executor.v1 import executor_pb2 as pb
from weir_chassis.errors import Internal, reason_name
from weir_chassis.status import from_rpc_error


async def _refusal(call: grpc.aio.UnaryUnaryCall[pb.EmbedRequest, pb.EmbedResponse]) -> str:
    with pytest.raises(grpc.RpcError) as refused:
        await call
    return reason_name(from_rpc_error(refused.value).reason)


async def test_what_does_not_fit_the_queue_is_refused_as_a_whole() -> None:
    async with house(max_waiting=10, max_num_seqs=1, step_seconds=0.01) as home, calling(home.stub) as caller:
        await caller.submit(1, max_tokens=30)
        await caller.until_tokens(1, 1)
        assert await _refusal(home.stub.Embed(embed(caller.info, *[prompt_of(4)] * 20))) == "OVERLOADED"
        await caller.until_told(1)
        assert len((await home.stub.Embed(embed(caller.info, *[prompt_of(4)] * 10))).embeddings) == 10
        await until_idle(home.stub)


async def test_one_that_fails_fails_the_call_and_aborts_the_others() -> None:
    async with house(max_num_seqs=2, step_seconds=0.01) as home, calling(home.stub) as caller:
        home.engine.fail_request(3, Internal("not finite"))  # the third input: keys count from 1
        assert await _refusal(home.stub.Embed(embed(caller.info, *[prompt_of(4)] * 40))) == "INTERNAL"
        assert (await until_idle(home.stub)).step < 40


async def test_a_deadline_that_passes_aborts_all() -> None:
    async with house("loopback", step_seconds=0.02, max_num_seqs=1) as home, calling(home.stub) as caller:
        ask = embed(caller.info, *[prompt_of(4)] * 200)
        assert await _refusal(home.stub.Embed(ask, timeout=0.2)) == "DEADLINE_EXCEEDED"
        assert (await until_idle(home.stub)).step < 200


async def test_a_drain_waits_for_a_call_and_refuses_the_next() -> None:
    async with house(step_seconds=0.01, max_num_seqs=1) as home, calling(home.stub) as caller:
        running = asyncio.ensure_future(home.stub.Embed(embed(caller.info, *[prompt_of(4)] * 40)))
        await until(lambda: home.engine.load().waiting_requests > 0)
        assert home.servicers.drain is not None
        await home.servicers.drain()
        assert await _refusal(home.stub.Embed(embed(caller.info, prompt_of(4)))) == "DRAINING"
        assert len((await running).embeddings) == 40
