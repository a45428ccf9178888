"""What every router keeps, whatever is behind it. Each check takes a `Door`: a stub, and the name of one served model.

Behind it are tokenizers, executors and postprocess services for one model with a context of at least 256 tokens. What
the model answers is not known here, so the checks are about order, counts, limits and errors.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2

from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt, ContentPart, ImagePart
from weir.inference.v1.embedding_pb2 import Pooling
from weir.inference.v1.output_pb2 import FinishReason
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1 import router_pb2 as pb
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.errors import InvalidArgument, ModelNotFound, WeirError, reason_name
from weir_chassis.status import RemoteError, from_rpc_error

if TYPE_CHECKING:
    from weir.router.v1.router_pb2_grpc import RouterServiceAsyncStub as Stub

STOP, LENGTH = FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH


@dataclass(frozen=True)
class Door:
    stub: Stub
    model: str


Check = Callable[[Door], Awaitable[None]]


@dataclass
class Answer:
    """A stream's events, by kind. Collecting it checks the order that stream.proto states."""

    kinds: list[str] = field(default_factory=list)
    accepted: Any = None
    # The last one.
    continued: Any = None
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    finished: dict[int, Any] = field(default_factory=dict)
    usage: Any = None
    receipt: Any = None

    def add(self, response: Any) -> None:
        kind = response.WhichOneof("event")
        event = getattr(response, kind)
        self._check_order(kind)
        self.kinds.append(kind)
        if kind == "delta":
            self._add_delta(event)
        elif kind == "finished":
            assert event.output_index not in self.finished, "an output finishes once"
            self.finished[event.output_index] = event
        else:
            setattr(self, kind, event)

    def _add_delta(self, delta: Any) -> None:
        index = delta.output_index
        assert index not in self.finished, "no token comes after an output's end"
        token_ids = self.token_ids.setdefault(index, [])
        assert delta.first_token_index == len(token_ids), "a delta begins where the one before it ended"
        token_ids.extend(delta.token_ids)
        self.texts[index] = self.texts.get(index, "") + delta.text
        self.logprobs.setdefault(index, []).extend(delta.logprobs)

    def _check_order(self, kind: str) -> None:
        if not self.kinds:
            assert kind == "accepted", "`accepted` is first"
        else:
            assert kind != "accepted", "`accepted` comes once"
        assert self.receipt is None, "`receipt` is last"
        assert self.usage is None or kind == "receipt", "only `receipt` comes after `usage`"

    def check_complete(self, n: int = 1) -> None:
        assert self.kinds[-2:] == ["usage", "receipt"]
        assert set(self.finished) == set(range(n))
        assert self.usage.completion_tokens == sum(map(len, self.token_ids.values()))
        assert self.receipt.request_id == self.accepted.request_id
        assert self.receipt.model_version == self.accepted.model_version
        assert self.receipt.attempts >= self.accepted.attempt >= 1


async def collect(stream: AsyncIterable[Any], answer: Answer | None = None) -> Answer:
    answer = answer or Answer()
    async for response in stream:
        answer.add(response)
    return answer


async def refusal(stream: AsyncIterable[Any]) -> tuple[str, grpc.RpcError, WeirError]:
    """The reason of the status that a stream ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        await collect(stream)
    error = from_rpc_error(caught.value)
    return reason_name(error.reason), caught.value, error


def violation(error: grpc.RpcError) -> error_details_pb2.BadRequest.FieldViolation:
    remote = from_rpc_error(error)
    assert isinstance(remote, RemoteError)
    for detail in remote.status.details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            return bad_request.field_violations[0]
    raise AssertionError("the status has no BadRequest")


def text(door: Door, prompt: str = "Once upon a time", **fields: Any) -> pb.GenerateRequest:
    request = pb.GenerateRequest(model=door.model, text=prompt)
    request.MergeFrom(pb.GenerateRequest(stopping=StoppingConditions(max_tokens=8)))
    request.MergeFrom(pb.GenerateRequest(**fields))
    return request


def chat(door: Door, *texts: str, **fields: Any) -> pb.ChatRequest:
    messages = [ChatMessage(role="user", content=[ContentPart(text=text)]) for text in texts or ("Tell me a story",)]
    request = pb.ChatRequest(model=door.model, prompt=ChatPrompt(messages=messages))
    request.stopping.max_tokens = 8
    request.MergeFrom(pb.ChatRequest(**fields))
    return request


async def check_generate_from_text(door: Door) -> None:
    answer = await collect(door.stub.Generate(text(door)))
    answer.check_complete()
    assert 1 <= len(answer.token_ids[0]) <= 8
    assert answer.usage.prompt_tokens > 0
    assert answer.receipt.model_version.model == door.model
    assert answer.receipt.worker
    assert answer.receipt.policy


async def check_generate_from_token_ids(door: Door) -> None:
    request = text(door, token_ids=pb.TokenPrompt(token_ids=[65, 66, 67, 68]))
    answer = await collect(door.stub.Generate(request))
    answer.check_complete()
    assert answer.usage.prompt_tokens == 4


async def check_chat(door: Door) -> None:
    answer = await collect(door.stub.Chat(chat(door)))
    answer.check_complete()
    assert answer.finished[0].finish_reason in (STOP, LENGTH)


async def check_the_only_model_may_be_left_unnamed(door: Door) -> None:
    answer = await collect(door.stub.Generate(text(Door(door.stub, ""))))
    assert answer.accepted.model_version.model == door.model


async def check_max_tokens_ends_an_output_with_length(door: Door) -> None:
    request = text(door, stopping=StoppingConditions(max_tokens=5, ignore_eos=True))
    answer = await collect(door.stub.Generate(request))
    assert len(answer.token_ids[0]) == 5
    assert answer.finished[0].finish_reason == LENGTH


async def check_each_of_n_outputs_finishes(door: Door) -> None:
    request = text(door, sampling=SamplingParameters(n=3), stopping=StoppingConditions(max_tokens=4, ignore_eos=True))
    answer = await collect(door.stub.Generate(request))
    answer.check_complete(n=3)
    assert answer.usage.completion_tokens == 12


async def check_a_seed_that_is_unset_is_drawn_and_named(door: Door) -> None:
    seeds = {(await collect(door.stub.Generate(text(door)))).receipt.seed for _ in range(2)}
    assert len(seeds) == 2


async def check_the_same_seed_draws_the_same(door: Door) -> None:
    request = text(door, sampling=SamplingParameters(seed=7, temperature=1.0))
    first, second = [await collect(door.stub.Generate(request)) for _ in range(2)]
    assert first.receipt.seed == second.receipt.seed == 7
    assert first.token_ids == second.token_ids
    assert first.texts == second.texts


async def check_a_stop_string_ends_the_text_before_it(door: Door) -> None:
    free = await collect(door.stub.Generate(text(door, sampling=SamplingParameters(temperature=0.0))))
    words = free.texts[0]
    stop = next((words[i] for i in range(1, len(words)) if words[i] not in words[:i]), None)
    if stop is None or not stop.isascii():
        pytest.skip(f"the model's answer {words!r} has nothing to stop at")
    stopping = StoppingConditions(stop=[stop])
    request = text(door, sampling=SamplingParameters(temperature=0.0), stopping=stopping)
    answer = await collect(door.stub.Generate(request))
    answer.check_complete()
    assert answer.texts[0] == words[: words.index(stop)]
    assert answer.finished[0].finish_reason == STOP
    assert answer.finished[0].stop == stop
    assert answer.usage.completion_tokens <= free.usage.completion_tokens


async def check_log_probabilities_come_with_their_tokens(door: Door) -> None:
    answer = await collect(door.stub.Generate(text(door, sampling=SamplingParameters(logprobs=2))))
    logprobs = answer.logprobs[0]
    assert [entry.token_id for entry in logprobs] == answer.token_ids[0]
    assert all(entry.logprob <= 0.0 and len(entry.top) == 2 for entry in logprobs)


async def check_without_asking_there_are_no_log_probabilities(door: Door) -> None:
    answer = await collect(door.stub.Generate(text(door)))
    assert answer.logprobs[0] == []


async def check_a_request_id_is_kept(door: Door) -> None:
    call = door.stub.Generate(text(door), metadata=(("weir-request-id", "mine-1"),))
    answer = await collect(call)
    assert answer.accepted.request_id == answer.receipt.request_id == "mine-1"


async def check_a_request_id_that_is_too_long_is_replaced(door: Door) -> None:
    call = door.stub.Generate(text(door), metadata=(("weir-request-id", "x" * 129),))
    answer = await collect(call)
    assert 0 < len(answer.accepted.request_id) <= 128


async def check_an_unknown_model_says_what_is_known(door: Door) -> None:
    reason, _, error = await refusal(door.stub.Generate(text(Door(door.stub, "no-such-model"))))
    assert reason == "MODEL_NOT_FOUND"
    assert error.metadata["known"] == door.model


async def check_a_bad_field_is_named_with_its_limit(door: Door) -> None:
    for request, where in (
        (text(door, sampling=SamplingParameters(n=17)), "sampling.n"),
        (text(door, sampling=SamplingParameters(temperature=float("nan"))), "sampling.temperature"),
        (text(door, stopping=StoppingConditions(stop=["x"] * 17)), "stopping.stop"),
        (text(door, prompt=""), "text"),
        (text(door, priority=101), "priority"),
    ):
        reason, error, _ = await refusal(door.stub.Generate(request))
        assert reason == "INVALID_ARGUMENT"
        assert violation(error).field == where
        assert violation(error).description


async def check_an_image_is_unsupported(door: Door) -> None:
    image = ContentPart(image=ImagePart(url="http://example.com/cat.png"))
    prompt = ChatPrompt(messages=[ChatMessage(role="user", content=[image])])
    reason, _, _ = await refusal(door.stub.Chat(pb.ChatRequest(model=door.model, prompt=prompt)))
    assert reason == "UNSUPPORTED"


async def check_a_token_outside_the_vocabulary_is_named(door: Door) -> None:
    request = text(door, token_ids=pb.TokenPrompt(token_ids=[65, 2**31]))
    reason, error, _ = await refusal(door.stub.Generate(request))
    assert reason == "INVALID_ARGUMENT"
    assert violation(error).field == "token_ids.token_ids[1]"


async def check_a_prompt_that_does_not_fit_says_by_how_much(door: Door) -> None:
    models = await door.stub.ListModels(pb.ListModelsRequest())
    limit = models.models[0].max_model_len
    request = text(door, token_ids=pb.TokenPrompt(token_ids=[65] * (limit + 1)))
    reason, _, error = await refusal(door.stub.Generate(request))
    assert reason == "PROMPT_TOO_LONG"
    assert error.metadata == {"tokens": str(limit + 1), "limit": str(limit - 1)}


async def check_a_deadline_is_kept(door: Door) -> None:
    request = text(door, stopping=StoppingConditions(max_tokens=200, ignore_eos=True))
    reason, _, _ = await refusal(door.stub.Generate(request, timeout=0.001))
    assert reason == "DEADLINE_EXCEEDED"


async def check_a_cancelled_call_leaves_the_others_as_they_are(door: Door) -> None:
    long = StoppingConditions(max_tokens=60, ignore_eos=True)
    cancelled = door.stub.Generate(text(door, stopping=long))
    neighbour = asyncio.create_task(collect(door.stub.Generate(text(door, stopping=long))))
    assert (await anext(aiter(cancelled))).HasField("accepted")
    cancelled.cancel()
    answer = await neighbour
    answer.check_complete()
    assert len(answer.token_ids[0]) == 60


async def check_many_at_once_each_get_their_own(door: Door) -> None:
    prompts = [f"story number {i} about a{'b' * i}" for i in range(12)]
    request = [text(door, prompt, sampling=SamplingParameters(temperature=0.0)) for prompt in prompts]
    alone = [await collect(door.stub.Generate(each)) for each in request]
    together = await asyncio.gather(*(collect(door.stub.Generate(each)) for each in request))
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def embed(door: Door, *inputs: str | list[int], **fields: Any) -> pb.EmbedRequest:
    def one(value: str | list[int]) -> pb.EmbedInput:
        if isinstance(value, str):
            return pb.EmbedInput(text=value)
        return pb.EmbedInput(token_ids=pb.TokenPrompt(token_ids=value))

    return pb.EmbedRequest(model=door.model, inputs=map(one, inputs), **fields)


async def check_texts_and_token_ids_are_embedded_in_their_order(door: Door) -> None:
    texts = [f"story number {i} about a{'b' * i}" for i in range(12)]
    for kind in (Pooling.POOLING_MEAN, Pooling.POOLING_LAST):
        together = await door.stub.Embed(embed(door, [7, 8, 9], *texts, [10], pooling=kind))
        assert len(together.embeddings) == 14
        assert together.model_version.model == door.model
        assert together.usage.prompt_tokens > 3 + 12 + 1
        for index, value in ((0, [7, 8, 9]), (1, texts[0]), (12, texts[11]), (13, [10])):
            (alone,) = (await door.stub.Embed(embed(door, value, pooling=kind))).embeddings
            assert alone.values == pytest.approx(together.embeddings[index].values, abs=1e-4)
            assert math.hypot(*alone.values) == pytest.approx(1.0, abs=1e-5)


async def check_a_bad_embed_request_names_its_field(door: Door) -> None:
    wrong = {
        "inputs: must have 1 to 256": embed(door),
        "inputs: must have 1 to 256 entries, has 257": embed(door, *["x"] * 257),
        "inputs[1].text": embed(door, "x", ""),
        "inputs[1].token_ids.token_ids: must": embed(door, "x", []),
        "inputs[1].token_ids.token_ids[1]": embed(door, "x", [5, 1 << 31]),
        "inputs[1]: is required": pb.EmbedRequest(model=door.model, inputs=[pb.EmbedInput(text="x"), pb.EmbedInput()]),
        "inputs[2]: 100000 tokens": embed(door, "x", "y", [5] * 100_000),
        "priority: must be in [-100, 100]": embed(door, "x", priority=101),
        "pooling: 77": embed(door, "x", pooling=77),
        "adapter: must be 0 to 128": embed(door, "x", adapter="x" * 129),
    }
    for words, request in wrong.items():
        with pytest.raises(grpc.RpcError) as refused:
            await door.stub.Embed(request)
        error = from_rpc_error(refused.value)
        assert isinstance(error, InvalidArgument), error
        assert words in error.message
    with pytest.raises(grpc.RpcError) as refused:
        await door.stub.Embed(pb.EmbedRequest(model="unheard-of", inputs=[pb.EmbedInput(text="x")]))
    assert isinstance(from_rpc_error(refused.value), ModelNotFound)


async def check_models_are_listed(door: Door) -> None:
    response = await door.stub.ListModels(pb.ListModelsRequest())
    (model,) = response.models
    assert model.model_version.model == door.model
    assert model.model_version.revision
    assert model.max_model_len >= 256
    assert model.workers >= model.healthy_workers >= 1


CHECKS: list[Check] = [value for name, value in globals().items() if name.startswith("check_")]


def connect(channel: grpc.aio.Channel, model: str) -> Door:
    return Door(RouterServiceStub(channel), model)


async def until_healthy(door: Door, seconds: float = 20.0) -> None:
    """Returns when the model has a healthy worker and answers."""
    async with asyncio.timeout(seconds):
        while True:
            models = (await door.stub.ListModels(pb.ListModelsRequest())).models
            if models and models[0].healthy_workers:
                try:
                    await collect(door.stub.Generate(text(door)))
                    return
                except grpc.RpcError:
                    pass  # a tokenizer or postprocess service may still be on its way
            await asyncio.sleep(0.02)
