"""The client over a router that says what the test tells it to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from weir.inference.v1.embedding_pb2 import Embedding, Pooling
from weir.inference.v1.ensemble_pb2 import EnsemblePlan, Vote
from weir.inference.v1.output_pb2 import FINISH_REASON_STOP, Usage
from weir.inference.v1.stream_pb2 import Accepted, Delta, OutputFinished, Receipt
from weir.router.v1 import router_pb2
from weir.router.v1.router_pb2 import (
    ChatRequest,
    ChatResponse,
    EmbedRequest,
    EmbedResponse,
    GenerateRequest,
    GenerateResponse,
)
from weir.router.v1.router_pb2_grpc import RouterServiceServicer, add_RouterServiceServicer_to_server
from weir_chassis.errors import Overloaded, Unsupported, WeirError, reason_name
from weir_chassis.server import Registration
from weir_chassis.testing import serve_in_memory
from weir_client.answer import collect
from weir_client.client import Client, system, user

NAME = router_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name


class ScriptedRouter(RouterServiceServicer):
    """Answers each chat with the same events, or refuses it."""

    def __init__(self, refusal: WeirError | None = None) -> None:
        self.refusal = refusal
        self.asked: list[ChatRequest | GenerateRequest] = []
        self.embeds: list[EmbedRequest] = []
        self.metadata: dict[str, str | bytes] = {}
        self.left = False

    async def Chat(self, request: ChatRequest, context: Any) -> AsyncIterator[ChatResponse]:
        self.asked.append(request)
        self.metadata = dict(context.invocation_metadata())
        if self.refusal:
            raise self.refusal
        try:
            for event in script():
                yield event
        except GeneratorExit:
            self.left = True
            raise

    async def Generate(self, request: GenerateRequest, context: Any) -> AsyncIterator[GenerateResponse]:
        self.asked.append(request)
        yield GenerateResponse(accepted=Accepted(request_id="g"))

    async def Embed(self, request: EmbedRequest, _: Any) -> EmbedResponse:
        if self.refusal:
            raise self.refusal
        self.embeds.append(request)
        return EmbedResponse(embeddings=[Embedding(values=[0.5, len(request.inputs)])])

    async def DetectWatermark(
        self, _: router_pb2.DetectWatermarkRequest, __: Any
    ) -> router_pb2.DetectWatermarkResponse:
        raise Unsupported("no executor here has a watermark key")

    async def Resume(self, _: router_pb2.ResumeRequest, __: Any) -> AsyncIterator[router_pb2.ResumeResponse]:
        raise Unsupported("nothing is retained here")
        yield

    async def CancelRequest(self, _: router_pb2.CancelRequestRequest, __: Any) -> router_pb2.CancelRequestResponse:
        raise Unsupported("nothing is retained here")

    async def RunEnsemble(
        self, request: router_pb2.RunEnsembleRequest, context: object
    ) -> router_pb2.RunEnsembleResponse:
        return router_pb2.RunEnsembleResponse(text=" or ".join(request.plan.vote.models))

    async def ListModels(self, request: object, context: object) -> router_pb2.ListModelsResponse:
        return router_pb2.ListModelsResponse(
            models=[router_pb2.Model(max_model_len=64)], aliases=[router_pb2.ServedAlias(name="chat")]
        )


def script() -> list[ChatResponse]:
    return [
        ChatResponse(accepted=Accepted(request_id="r", attempt=1)),
        ChatResponse(delta=Delta(output_index=0, first_token_index=0, token_ids=[5, 6], text="he")),
        ChatResponse(delta=Delta(output_index=1, first_token_index=0, token_ids=[7], text="x")),
        ChatResponse(delta=Delta(output_index=0, first_token_index=2, token_ids=[8], text="y")),
        ChatResponse(finished=OutputFinished(output_index=0, finish_reason=FINISH_REASON_STOP)),
        ChatResponse(usage=Usage(prompt_tokens=3, completion_tokens=4)),
        ChatResponse(receipt=Receipt(request_id="r", attempts=1)),
    ]


async def test_a_chat_is_collected_output_by_output() -> None:
    router = ScriptedRouter()
    async with serve_in_memory(Registration(add_RouterServiceServicer_to_server, router, NAME)) as channel:
        client = Client("", channel=channel)
        answer = await collect(
            client.chat([system("s"), user("u")], model="m", request_id="mine", priority=3, tenant="acme")
        )
    assert answer.text == "hey"
    assert answer.outputs[0].token_ids == [5, 6, 8]
    assert answer.outputs[1].text == "x"
    assert answer.usage.completion_tokens == 4
    assert answer.receipt.request_id == "r"
    asked = router.asked[0]
    assert isinstance(asked, ChatRequest)
    assert [m.role for m in asked.prompt.messages] == ["system", "user"]
    assert (asked.model, asked.priority) == ("m", 3)
    assert (router.metadata["weir-request-id"], router.metadata["weir-tenant"]) == ("mine", "acme")


async def test_events_that_come_as_one_message_are_given_one_by_one() -> None:
    class Batching(ScriptedRouter):
        async def Chat(self, request: ChatRequest, context: Any) -> AsyncIterator[ChatResponse]:
            assert request.batch_events
            first, *more = script()
            first.more.extend(more)
            yield first

    async with serve_in_memory(Registration(add_RouterServiceServicer_to_server, Batching(), NAME)) as channel:
        events = [event async for event in Client("", channel=channel).chat([user("u")])]
    assert events == list(script())


async def test_a_refusal_is_the_typed_error_that_the_router_meant() -> None:
    router = ScriptedRouter(Overloaded("the queue is full"))
    async with serve_in_memory(Registration(add_RouterServiceServicer_to_server, router, NAME)) as channel:
        with pytest.raises(WeirError, match="the queue is full") as caught:
            await collect(Client("", channel=channel).chat([user("u")]))
    assert reason_name(caught.value.reason) == "OVERLOADED"


@pytest.mark.parametrize("prompt", ["text", [1, 2, 3]])
async def test_generate_sends_text_or_token_ids(prompt: str | list[int]) -> None:
    router = ScriptedRouter()
    async with serve_in_memory(Registration(add_RouterServiceServicer_to_server, router, NAME)) as channel:
        await collect(Client("", channel=channel).generate(prompt))
    asked = router.asked[0]
    assert isinstance(asked, GenerateRequest)
    assert (asked.text if isinstance(prompt, str) else list(asked.token_ids.token_ids)) == prompt


async def test_embed_sends_texts_and_token_ids_and_raises_what_the_router_meant() -> None:
    router = ScriptedRouter()
    async with serve_in_memory(Registration(add_RouterServiceServicer_to_server, router, NAME)) as channel:
        client = Client("", channel=channel)
        answer = await client.embed(["text", [1, 2]], pooling=Pooling.POOLING_MEAN, normalize=False, priority=2)
        router.refusal = Overloaded("the queue is full")
        with pytest.raises(WeirError, match="the queue is full"):
            await client.embed(["x"])
    assert list(answer.embeddings[0].values) == [0.5, 2.0]
    (asked,) = router.embeds
    assert (asked.inputs[0].text, list(asked.inputs[1].token_ids.token_ids)) == ("text", [1, 2])
    assert (asked.pooling, asked.HasField("normalize"), asked.normalize) == (Pooling.POOLING_MEAN, True, False)
    assert asked.priority == 2


async def test_models_are_listed() -> None:
    registration = Registration(add_RouterServiceServicer_to_server, ScriptedRouter(), NAME)
    async with serve_in_memory(registration) as channel:
        client = Client("", channel=channel)
        (model,) = await client.models()
        (alias,) = (await client.list_models()).aliases
    assert (model.max_model_len, alias.name) == (64, "chat")


async def test_several_models_answer_together() -> None:
    registration = Registration(add_RouterServiceServicer_to_server, ScriptedRouter(), NAME)
    async with serve_in_memory(registration) as channel:
        plan = EnsemblePlan(vote=Vote(models=["a", "b"]))
        told = await Client("", channel=channel).ensemble(plan, [user("u")], timeout=5)
    assert told.text == "a or b"
