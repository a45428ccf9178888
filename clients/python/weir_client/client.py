"""The Python client: one connection to a router, answers as streams of typed events.

    async with Client("127.0.0.1:7700") as client:
        async for event in client.chat([user("What is a weir?")]):
            if event.HasField("delta"):
                print(event.delta.text, end="")

A refusal or a failure raises the `WeirError` that the router meant, with its reason, details and retry hint.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import grpc

from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt, ContentPart
from weir.inference.v1.embedding_pb2 import Pooling
from weir.inference.v1.ensemble_pb2 import EnsemblePlan
from weir.inference.v1.routing_pb2 import RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.inference.v1.watermark_pb2 import Watermark
from weir.router.v1.router_pb2 import (
    CancelRequestRequest,
    ChatRequest,
    ChatResponse,
    DetectWatermarkRequest,
    DetectWatermarkResponse,
    EmbedInput,
    EmbedRequest,
    EmbedResponse,
    GenerateRequest,
    GenerateResponse,
    ListModelsRequest,
    ListModelsResponse,
    Model,
    ResumeRequest,
    ResumeResponse,
    RunEnsembleRequest,
    RunEnsembleResponse,
    TokenPrompt,
)
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import cancelling, open_channel
from weir_chassis.status import from_rpc_error
from weir_chassis.telemetry import REQUEST_ID_KEY
from weir_chassis.tenant import tenant_metadata
from weir_client.resuming import Had, going_on

_Request = TypeVar("_Request", ChatRequest, GenerateRequest)
_Response = TypeVar("_Response", ChatResponse, GenerateResponse)
_Reply = TypeVar("_Reply")
_Stream = TypeVar("_Stream", ChatResponse, GenerateResponse, ResumeResponse)


def message(role: str, text: str) -> ChatMessage:
    return ChatMessage(role=role, content=[ContentPart(text=text)])


def user(text: str) -> ChatMessage:
    return message("user", text)


def system(text: str) -> ChatMessage:
    return message("system", text)


class Client:
    """A connection to one router. Streams share it; closing it cancels them.

    Further addresses, after commas, are of routers that share their retained streams with the first.
    """

    def __init__(self, address: str, *, channel: grpc.aio.Channel | None = None) -> None:
        self._channels = [channel] if channel else [open_channel(each.strip()) for each in address.split(",")]
        self._turn = 0
        self._stub = RouterServiceStub(self._channels[0])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    def chat(
        self,
        messages: Sequence[ChatMessage] | ChatPrompt,
        *,
        model: str = "",
        sampling: SamplingParameters | None = None,
        stopping: StoppingConditions | None = None,
        priority: int = 0,
        timeout: float | None = None,
        request_id: str = "",
        tenant: str = "",
        adapter: str = "",
        routing: RoutingOptions | None = None,
        retain: float | None = None,
    ) -> AsyncIterator[ChatResponse]:
        """Answer `messages`. `timeout` in seconds is the deadline of the whole; leaving the iterator cancels it.

        `retain`: seconds for which the request outlives a lost connection. The iterator resumes it meanwhile by itself;
        leaving it does not cancel such a request, `cancel` does.

        `tenant`: whose share and quotas apply. Raises InvalidArgument for one that is no name. `adapter`: the name of
        one that executors have loaded. `routing`: session, constraints and the like.
        """
        prompt = messages if isinstance(messages, ChatPrompt) else ChatPrompt(messages=messages)
        request = ChatRequest(
            model=model,
            prompt=prompt,
            sampling=sampling,
            stopping=stopping,
            priority=priority,
            adapter=adapter,
            routing=routing,
            batch_events=True,
        )
        if retain is not None:
            return self._retained(
                request, ChatResponse, retain=retain, timeout=timeout, request_id=request_id, tenant=tenant
            )
        return _events(self._stub.Chat(request, timeout=timeout, metadata=_metadata(request_id, tenant)))

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        model: str = "",
        sampling: SamplingParameters | None = None,
        stopping: StoppingConditions | None = None,
        priority: int = 0,
        timeout: float | None = None,
        request_id: str = "",
        tenant: str = "",
        adapter: str = "",
        routing: RoutingOptions | None = None,
        retain: float | None = None,
    ) -> AsyncIterator[GenerateResponse]:
        """Go on from a prompt of text or of token ids. Otherwise as `chat`."""
        request = GenerateRequest(
            model=model,
            sampling=sampling,
            stopping=stopping,
            priority=priority,
            adapter=adapter,
            routing=routing,
            batch_events=True,
        )
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.token_ids.CopyFrom(TokenPrompt(token_ids=prompt))
        if retain is not None:
            return self._retained(
                request, GenerateResponse, retain=retain, timeout=timeout, request_id=request_id, tenant=tenant
            )
        return _events(self._stub.Generate(request, timeout=timeout, metadata=_metadata(request_id, tenant)))

    async def ensemble(
        self,
        plan: EnsemblePlan,
        messages: Sequence[ChatMessage] | ChatPrompt,
        *,
        sampling: SamplingParameters | None = None,
        stopping: StoppingConditions | None = None,
        priority: int = 0,
        timeout: float | None = None,
        request_id: str = "",
        tenant: str = "",
        routing: RoutingOptions | None = None,
    ) -> RunEnsembleResponse:
        """Answer `messages` by several models together, as `plan` says: a cascade, a hedge, a vote, judges."""
        prompt = messages if isinstance(messages, ChatPrompt) else ChatPrompt(messages=messages)
        request = RunEnsembleRequest(
            plan=plan, prompt=prompt, sampling=sampling, stopping=stopping, priority=priority, routing=routing
        )
        return await _answered(self._stub.RunEnsemble(request, timeout=timeout, metadata=_metadata(request_id, tenant)))

    def resume(
        self, request_id: str, *, had: Had | None = None, timeout: float | None = None, tenant: str = ""
    ) -> AsyncIterator[ResumeResponse]:
        """The rest of a retained stream, after what of it is `had`; raises NotFound when it is kept no longer."""
        wanted = ResumeRequest(request_id=request_id, next=had.next() if had else (), batch_events=True)
        return _events(self._stub.Resume(wanted, timeout=timeout, metadata=_metadata("", tenant)))

    async def cancel(self, request_id: str, *, timeout: float | None = 10.0, tenant: str = "") -> None:
        """Ends a retained request; one that is over is no error. Raises NotFound."""
        wanted = CancelRequestRequest(request_id=request_id)
        await _answered(self._stub.CancelRequest(wanted, timeout=timeout, metadata=_metadata("", tenant)))

    def _retained(
        self,
        request: _Request,
        response: type[_Response],
        *,
        retain: float,
        timeout: float | None,
        request_id: str,
        tenant: str,
    ) -> AsyncIterator[_Response]:
        """The id is known before the router is, and the key makes it safe to ask again when nothing has come back.

        `response` is named as its method is.
        """
        request_id = request_id or uuid4().hex
        request.routing.retain.FromNanoseconds(round(retain * 1e9))
        request.routing.idempotency_key = request.routing.idempotency_key or request_id
        ends_at = None if timeout is None else monotonic() + timeout

        def opened(had: Had) -> AsyncIterator[_Response]:
            left = None if ends_at is None else max(0.0, ends_at - monotonic())
            if had.begun:
                return _as(response, self.resume(had.request_id, had=had, timeout=left, tenant=tenant))
            call = getattr(self._stub, response.DESCRIPTOR.name.removesuffix("Response"))
            return _events(call(request, timeout=left, metadata=_metadata(request_id, tenant)))

        return going_on(opened, self._next_router, routers=len(self._channels), retain_seconds=retain)

    def _next_router(self) -> None:
        self._turn += 1
        self._stub = RouterServiceStub(self._channels[self._turn % len(self._channels)])

    async def embed(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        model: str = "",
        pooling: Pooling.ValueType = Pooling.POOLING_UNSPECIFIED,
        normalize: bool = True,
        priority: int = 0,
        timeout: float | None = None,
        request_id: str = "",
        tenant: str = "",
        adapter: str = "",
    ) -> EmbedResponse:
        """One vector for each text or list of token ids. Unspecified pooling takes the last token's."""
        request = EmbedRequest(
            model=model,
            inputs=map(_embed_input, inputs),
            pooling=pooling,
            normalize=normalize,
            priority=priority,
            adapter=adapter,
        )
        return await _answered(self._stub.Embed(request, timeout=timeout, metadata=_metadata(request_id, tenant)))

    async def detect_watermark(
        self,
        text: str,
        *,
        model: str = "",
        green_fraction: float | None = None,
        timeout: float | None = None,
        request_id: str = "",
        tenant: str = "",
    ) -> DetectWatermarkResponse:
        """Whether a text carries the tenant's watermark; `green_fraction` is that of the request it came from."""
        watermark = Watermark(green_fraction=green_fraction)
        request = DetectWatermarkRequest(model=model, text=text, watermark=watermark)
        return await _answered(
            self._stub.DetectWatermark(request, timeout=timeout, metadata=_metadata(request_id, tenant))
        )

    async def models(self, *, timeout: float | None = 10.0) -> list[Model]:
        return list((await self.list_models(timeout=timeout)).models)

    async def list_models(self, *, timeout: float | None = 10.0) -> ListModelsResponse:
        """The models, and the other names that requests may give for them."""
        return await _answered(self._stub.ListModels(ListModelsRequest(), timeout=timeout))


def _embed_input(value: str | Sequence[int]) -> EmbedInput:
    if isinstance(value, str):
        return EmbedInput(text=value)
    return EmbedInput(token_ids=TokenPrompt(token_ids=value))


async def _answered(call: Awaitable[_Reply]) -> _Reply:
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


async def _events(call: grpc.aio.UnaryStreamCall[Any, _Stream]) -> AsyncIterator[_Stream]:
    with cancelling(call):
        try:
            async for response in call:
                more = list(response.more)
                response.ClearField("more")
                yield response
                for event in more:
                    yield event
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


async def _as(response: type[_Response], events: AsyncIterator[ResumeResponse]) -> AsyncIterator[_Response]:
    """A resumed event as one of the stream that it belongs to: they have the same fields."""
    async with aclosing(events):  # type: ignore[type-var]
        async for event in events:
            yield response.FromString(event.SerializeToString())


def _metadata(request_id: str, tenant: str) -> tuple[tuple[str, str], ...]:
    named = ((REQUEST_ID_KEY, request_id),) if request_id else ()
    return (*named, *tenant_metadata(tenant))
