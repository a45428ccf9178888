"""Retained streams through a real router and fake workers, as a client sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from contract.router_contract import Answer, collect, refusal
from fakes.suite import Suite, suite
from weir.inference.v1.routing_pb2 import RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import reason_name
from weir_chassis.status import from_rpc_error


def request(text: str = "hello", *, retain: float = 60.0, key: str = "", **stopping: Any) -> pb.GenerateRequest:
    message = pb.GenerateRequest(text=text, stopping=StoppingConditions(**stopping))
    message.routing.CopyFrom(RoutingOptions(idempotency_key=key))
    message.routing.retain.FromNanoseconds(round(retain * 1e9))
    return message


def named(request_id: str) -> tuple[tuple[str, str], ...]:
    return (("weir-request-id", request_id),)


async def lost_after(running: Suite, tokens: int, message: pb.GenerateRequest) -> Answer:
    """What a client has of request `r` whose connection breaks after so many tokens."""
    call, answer = running.router.Generate(message, metadata=named("r")), Answer()
    async for response in call:
        answer.add(response)
        if sum(map(len, answer.token_ids.values())) >= tokens:
            break
    call.cancel()
    return answer


def the_rest(answer: Answer) -> pb.ResumeRequest:
    return pb.ResumeRequest(
        request_id="r",
        next=[
            pb.NextToken(output_index=i, first_token_index=len(ids), text_bytes=len(answer.texts[i].encode()))
            for i, ids in answer.token_ids.items()
        ],
    )


async def resumed(running: Suite, answer: Answer) -> Answer:
    """The client's answer with the rest of it; its checks of order are those of one stream."""
    async for response in running.router.Resume(the_rest(answer)):
        if not response.HasField("accepted") or answer.accepted is None:
            answer.add(response)
    return answer


async def cancel(running: Suite, *request_ids: str) -> None:
    for request_id in request_ids:
        await running.router.CancelRequest(pb.CancelRequestRequest(request_id=request_id))


@pytest.mark.parametrize("tokens", [1, 2, 7])
async def test_a_connection_that_breaks_costs_nothing(tokens: int) -> None:
    message = request("wörld wide")
    message.sampling.CopyFrom(SamplingParameters(n=2, logprobs=1))
    async with suite() as running:
        undisturbed = await collect(running.router.Generate(message))
        running.executor.step_seconds = 0.01
        answer = await resumed(running, await lost_after(running, tokens, message))
        answer.check_complete(n=2)
        assert (answer.texts, answer.token_ids) == (undisturbed.texts, undisturbed.token_ids)
        assert answer.logprobs == undisturbed.logprobs


async def test_the_executor_goes_on_without_the_client_and_is_told_when_nobody_comes_back() -> None:
    async with suite() as running:
        running.executor.pause_after = 3
        await lost_after(running, 3, request(retain=0.5))
        assert not running.executor.aborts
        await running.until(lambda: len(running.executor.aborts) == 1)
        assert await reason(running.router.CancelRequest(pb.CancelRequestRequest(request_id="r"))) == "NOT_FOUND"


async def test_cancel_request_reaches_the_executor_whoever_reads() -> None:
    async with suite() as running:
        running.executor.pause_after = 3
        call, answer = running.router.Generate(request(), metadata=named("r")), Answer()
        task = asyncio.create_task(collect(call, answer))
        await running.until(lambda: len(answer.token_ids.get(0, ())) == 3)
        await cancel(running, "r")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await task
        assert caught.value.code() is grpc.StatusCode.CANCELLED
        await running.until(lambda: len(running.executor.aborts) == 1)


async def reason(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return reason_name(from_rpc_error(caught.value).reason)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (pb.ResumeRequest(), "request_id"),
        (pb.ResumeRequest(request_id="x" * 129), "request_id"),
        (pb.ResumeRequest(request_id="r", next=[pb.NextToken(output_index=i) for i in range(17)]), "next"),
        (pb.ResumeRequest(request_id="r", next=[pb.NextToken(), pb.NextToken()]), "next"),
    ],
)
async def test_a_wrong_resume_names_its_field(wrong: pb.ResumeRequest, field: str) -> None:
    async with suite() as running:
        why, _, error = await refusal(running.router.Resume(wrong))
        assert (why, error.message.startswith(field)) == ("INVALID_ARGUMENT", True)


async def test_a_retry_with_the_same_key_is_not_computed_twice() -> None:
    async with suite() as running:
        first = await collect(running.router.Generate(request(key="k")))
        again = await collect(running.router.Generate(request(key="k")))
        assert (again.texts, again.receipt, again.accepted) == (first.texts, first.receipt, first.accepted)
        assert len(running.executor.submits) == 1
        why, error, _ = await refusal(running.router.Generate(request("other", key="k")))
        assert why == "ALREADY_EXISTS"
        assert "idempotency_key" in str(error)


async def test_a_slow_reader_of_a_retained_stream_loses_nothing_and_slows_nobody() -> None:
    """Without `retain` its request would end with SLOW_CONSUMER."""
    async with suite(loopback=True, max_pending_tokens=64) as running:
        slow = running.router.Generate(request("x" * 50, ignore_eos=True, max_tokens=200))
        answer = Answer()
        answer.add(await slow.read())  # and no further for now
        others = await asyncio.gather(*(collect(running.router.Generate(request("y" * 30))) for _ in range(4)))
        assert [each.texts[0] for each in others] == ["y" * 30] * 4
        while (response := await slow.read()) is not grpc.aio.EOF:
            answer.add(response)
        answer.check_complete()
        assert answer.texts[0] == "x" * 200


async def test_what_is_kept_is_bounded_and_what_runs_is_not_thrown_out() -> None:
    async with suite(retained_streams=2) as running:
        for index in range(3):
            await collect(running.router.Generate(request(retain=60.0), metadata=named(f"over-{index}")))
        held: Sequence[Any] = running.chassis.leases.live()
        assert [lease.owner for lease in held] == ["over-1", "over-2"]
        running.executor.pause_after = 1
        calls = [running.router.Generate(request(), metadata=named(f"runs-{index}")) for index in range(2)]
        answers = [asyncio.create_task(collect(call)) for call in calls]
        await running.until(lambda: len(running.executor.submits) == 5)
        why, _, error = await refusal(running.router.Generate(request(), metadata=named("late")))
        assert why == "OVERLOADED"
        assert error.retry_after is not None
        running.executor.resume()
        for answer in await asyncio.gather(*answers):
            answer.check_complete()


async def test_a_draining_router_finishes_what_nobody_reads() -> None:
    async with suite() as running:
        running.executor.pause_after = 2
        await lost_after(running, 2, request())
        assert running.drain is not None
        drained = asyncio.ensure_future(running.drain())
        await asyncio.sleep(0.05)
        assert not drained.done()
        running.executor.resume()
        await asyncio.wait_for(drained, 10)
        answer = Answer()
        await collect(running.router.Resume(pb.ResumeRequest(request_id="r")), answer)
        assert answer.texts == {0: "hello"}
