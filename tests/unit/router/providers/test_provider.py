"""A provider against the double: its stream as our events, its failures as our errors, its end when we leave."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fakes.openai_server import KEY, MODEL, openai_server
from unit.router.providers.making import asked, chat, provider, request, table
from weir.inference.v1.output_pb2 import FinishReason, Usage
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.inference.v1.stream_pb2 import Accepted, Delta, OutputFinished
from weir_chassis.errors import InvalidArgument, NotFound, Overloaded, WeirError, WorkerLost
from weir_router.delivery import Event
from weir_router.providers.errors import Away
from weir_router.providers.provider import Provider
from weir_router.request import ClientRequest


async def events(worker: Provider, client_request: ClientRequest | None = None) -> list[Event]:
    async with aclosing(worker.execute(asked(client_request or request(chat("one two three"))))) as stream:
        return [event async for event in stream]


async def failure(worker: Provider) -> WeirError:
    with pytest.raises(WeirError) as caught:
        await events(worker)
    return caught.value


@pytest.mark.parametrize("pieces", [1, 7])
async def test_a_chat_is_accepted_told_finished_and_counted(tmp_path: Path, pieces: int) -> None:
    async with openai_server() as server, provider(server, tmp_path) as worker:
        server.pieces, server.cached_tokens = pieces, 2
        came = await events(worker)
        assert isinstance(came[0], Accepted)
        assert (came[0].model_version.model, came[0].model_version.revision) == ("demo", MODEL)
        assert "".join(event.text for event in came if isinstance(event, Delta)) == "one two three"
        assert came[-2] == OutputFinished(finish_reason=FinishReason.FINISH_REASON_STOP)
        assert came[-1] == Usage(prompt_tokens=3, cached_prompt_tokens=2, completion_tokens=3)
        assert server.requests[0]["messages"] == [{"role": "user", "content": "one two three"}]
        assert server.requests[0]["model"] == MODEL
        assert server.keys[-1] == f"Bearer {KEY}"


async def test_a_completion_with_two_outputs_and_logprobs(tmp_path: Path) -> None:
    wanted = request(
        sampling=SamplingParameters(n=2, logprobs=1, temperature=0.5), stopping=StoppingConditions(max_tokens=2)
    )
    async with openai_server() as server, provider(server, tmp_path) as worker:
        came = await events(worker, wanted)
        texts = {0: "", 1: ""}
        for event in came:
            if isinstance(event, Delta):
                texts[event.output_index] += event.text
                assert not event.token_ids
                assert event.logprobs[0].logprob == -0.5
                assert event.logprobs[0].top[0].token
        assert texts == {0: "one two", 1: "one1 two1"}
        assert [e.finish_reason for e in came if isinstance(e, OutputFinished)] == [
            FinishReason.FINISH_REASON_LENGTH
        ] * 2
        assert server.paths[-1] == "/v1/completions"


async def test_tool_calls_and_filters_are_told(tmp_path: Path) -> None:
    async with openai_server() as server, provider(server, tmp_path) as worker:
        server.tool_calls = [
            {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}},
            {"index": 0, "function": {"arguments": '{"at":'}},
            {"index": 0, "function": {"arguments": ' "it"}'}},
        ]
        server.finish_reason = "content_filter"
        came = await events(worker)
        calls = [call for event in came if isinstance(event, Delta) for call in event.tool_calls]
        assert (calls[0].id, calls[0].name) == ("call_1", "look")
        assert "".join(call.arguments_json for call in calls) == '{"at": "it"}'
        assert came[-2] == OutputFinished(finish_reason=FinishReason.FINISH_REASON_CONTENT_FILTER)


async def test_what_a_provider_does_not_count_is_marked_as_a_guess(tmp_path: Path) -> None:
    async with openai_server() as server, provider(server, tmp_path) as worker:
        server.counts_tokens = False
        assert (await events(worker))[-1] == Usage(prompt_tokens=7, completion_tokens=3, estimated=True)


def refused(status: int, **fields: Any) -> tuple[int, dict[str, str], Any]:
    headers = {"Retry-After": "7"} if status == 429 else {}
    return status, headers, {"error": {"message": f"secret {KEY}", "type": "t", "param": None, "code": None, **fields}}


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (refused(400, param="messages"), InvalidArgument),
        (refused(400, code="unsupported_parameter", param="seed"), NotFound),
        (refused(401), Away),
        (refused(403), Away),
        (refused(404), WorkerLost),
        (refused(418), WorkerLost),
        (refused(429), Overloaded),
        (refused(429, code="insufficient_quota"), Away),
        (refused(500), WorkerLost),
        (refused(503), Overloaded),
        ((502, {}, "<html>a proxy's page</html>"), WorkerLost),
        ((302, {"Location": "http://127.0.0.1:1/elsewhere"}, ""), WorkerLost),
    ],
)
async def test_refusals_are_errors_of_the_table_and_repeat_nothing(
    tmp_path: Path, refusal: tuple[int, dict[str, str], Any], kind: type[WeirError]
) -> None:
    async with openai_server() as server, provider(server, tmp_path) as worker:
        server.refusal = refusal
        error = await failure(worker)
        assert type(error) is kind
        assert KEY not in error.message
        assert "secret" not in error.message
        assert error.metadata["worker"] == "provider:p"
        assert str(refusal[0]) in error.message
        if refusal[0] == 429 and kind is Overloaded:
            assert error.retry_after == timedelta(seconds=7)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({"message": "x", "type": "server_error", "code": None}, WorkerLost),
        ({"message": "x", "type": "rate_limit_error", "code": "rate_limit_exceeded"}, Overloaded),
        ({"message": "x", "type": "invalid_request_error", "code": "context_length_exceeded"}, InvalidArgument),
        ({"message": "x", "code": 503}, Overloaded),
        ("just a string", WorkerLost),
    ],
)
async def test_an_error_inside_a_good_stream_is_one(tmp_path: Path, told: Any, kind: type[WeirError]) -> None:
    async with openai_server() as server, provider(server, tmp_path) as worker:
        server.error_after = (2, told)
        assert type(await failure(worker)) is kind


async def test_a_stream_that_breaks_off_is_lost(tmp_path: Path) -> None:
    async with openai_server() as server, provider(server, tmp_path) as worker:
        server.cut_after = 2
        error = await failure(worker)
        assert type(error) is WorkerLost, "it was there, and may be still"
        assert "broke off" in error.message


async def test_a_stream_without_its_last_word_is_whole_when_all_outputs_are(tmp_path: Path) -> None:
    async with openai_server() as server, provider(server, tmp_path) as worker:
        server.ends_without_done = True
        assert isinstance((await events(worker))[-1], Usage)
        server.finish_reason = ""
        assert "before its answer" in (await failure(worker)).message


async def test_silence_is_a_loss_before_and_within_an_answer(tmp_path: Path) -> None:
    async with (
        openai_server() as server,
        provider(server, tmp_path, first_answer_seconds=0.05, silence_seconds=0.05) as worker,
    ):
        server.running.clear()
        assert "has not answered for 0.05 s" in (await failure(worker)).message
        server.running.set()
        server.hang_after = 2
        assert "has sent nothing for 0.05 s" in (await failure(worker)).message


async def test_who_cannot_be_reached_is_away(tmp_path: Path) -> None:
    async with openai_server() as server, provider(server, tmp_path) as worker:
        gone = Provider(table(server, tmp_path, base_url="http://127.0.0.1:1/v1"), worker.context)
        with pytest.raises(Away, match="could not be reached"):
            await gone.probe()
        assert type(await failure(gone)) is Away
        await gone.close()


async def test_leaving_closes_the_providers_stream(tmp_path: Path) -> None:
    async with openai_server() as server, provider(server, tmp_path) as worker:
        server.hang_after = 2
        task = asyncio.create_task(events(worker))
        async with asyncio.timeout(10):
            while not server.live:
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(10):
            while server.live:
                await asyncio.sleep(0.001)


async def test_a_key_is_read_again_and_a_missing_one_is_said(tmp_path: Path) -> None:
    async with openai_server() as server, provider(server, tmp_path) as worker:
        (tmp_path / "key").write_text("wrong")
        with pytest.raises(Away, match="401"):
            await worker.probe()
        (tmp_path / "key").write_text(f"  {KEY}\n")
        await worker.probe()
        await events(worker)
        (tmp_path / "key").unlink()
        with pytest.raises(Away, match="FileNotFoundError"):
            await worker.probe()


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_an_endpoint_without_a_list_of_models_is_there(tmp_path: Path, status: int) -> None:
    async with openai_server() as server, provider(server, tmp_path) as worker:
        server.models_status = status
        await worker.probe()


async def test_its_state_and_rest_are_seen(tmp_path: Path) -> None:
    async with openai_server() as server, provider(server, tmp_path) as worker:
        now = worker.context.clock.monotonic()
        await worker._look()
        assert worker.view(now).state.value == "serving"
        worker.note(Overloaded("x", retry_after=timedelta(seconds=9)))
        assert 8 < worker.view(now).rest_seconds < 10
        assert not worker.view(now).has_room
        worker.note(WorkerLost("x"))
        assert worker.view(now).state.value == "serving"
        worker.note(Away("x"))
        assert worker.view(now).state.value == "down"
