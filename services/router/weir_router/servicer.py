"""The one door: validate, translate, run, translate back."""

from __future__ import annotations

from random import Random
from typing import Any

from grpc.aio import ServicerContext

from weir.router.v1.router_pb2 import (
    CancelRequestRequest,
    CancelRequestResponse,
    ChatRequest,
    ChatResponse,
    DetectWatermarkRequest,
    DetectWatermarkResponse,
    EmbedRequest,
    EmbedResponse,
    GenerateRequest,
    GenerateResponse,
    ListModelsRequest,
    ListModelsResponse,
    ResumeRequest,
    ResumeResponse,
    RunEnsembleRequest,
    RunEnsembleResponse,
)
from weir.router.v1.router_pb2_grpc import RouterServiceServicer
from weir_chassis.deadline import time_left
from weir_chassis.interceptors import returns_last_message
from weir_chassis.tenant import tenant_from
from weir_router import mapping, validation
from weir_router.detector import Detector
from weir_router.embedder import Embedder
from weir_router.ensembles.ensembles import Ensembles
from weir_router.ensembles.plan import plan_of, plan_seconds
from weir_router.event_writer import EventWriter
from weir_router.incoming import current_request_id, incoming
from weir_router.retained.cut import places_of
from weir_router.retained.requests import RetainedRequests
from weir_router.retained.stream import Name
from weir_router.routing import Routing


class RouterServicer(RouterServiceServicer):
    """Its streams are coroutines that write, so that a cancelled call is seen where it is waited."""

    def __init__(
        self,
        requests: RetainedRequests,
        embedder: Embedder,
        detector: Detector,
        routing: Routing,
        random: Random,
        *,
        ensembles: Ensembles,
    ):
        self._requests, self._embedder, self._detector = requests, embedder, detector
        self._ensembles = ensembles
        self._routing, self.fleet, self._random = routing, routing.fleet, random

    @returns_last_message
    async def Generate(  # type: ignore[override]  # the stubs know streams as generators only
        self, request: GenerateRequest, context: ServicerContext[GenerateRequest, GenerateResponse]
    ) -> GenerateResponse:
        wanted = incoming(request, context.invocation_metadata(), self._routing, self._seed())
        writer = EventWriter(GenerateResponse, context.write, batched=request.batch_events)
        await self._requests.answer(request, wanted, writer.write, time_left(context))
        return writer.last

    @returns_last_message
    async def Chat(  # type: ignore[override]  # as above
        self, request: ChatRequest, context: ServicerContext[ChatRequest, ChatResponse]
    ) -> ChatResponse:
        wanted = incoming(request, context.invocation_metadata(), self._routing, self._seed())
        writer = EventWriter(ChatResponse, context.write, batched=request.batch_events)
        await self._requests.answer(request, wanted, writer.write, time_left(context))
        return writer.last

    async def Embed(
        self, request: EmbedRequest, context: ServicerContext[EmbedRequest, EmbedResponse]
    ) -> EmbedResponse:
        validation.check_embed(request)
        tenant = tenant_from(context.invocation_metadata())
        return await self._embedder.run(request, current_request_id(), tenant, time_left(context))

    async def RunEnsemble(
        self, request: RunEnsembleRequest, context: ServicerContext[RunEnsembleRequest, RunEnsembleResponse]
    ) -> RunEnsembleResponse:
        plan = plan_of(request.plan)
        validation.check_one_output(request.sampling)
        wanted = incoming(mapping.ensemble_chat(request), context.invocation_metadata(), self._routing, self._seed())
        return await self._ensembles.answer(plan, wanted, plan_seconds(request.plan, time_left(context)))

    async def DetectWatermark(
        self, request: DetectWatermarkRequest, context: ServicerContext[DetectWatermarkRequest, DetectWatermarkResponse]
    ) -> DetectWatermarkResponse:
        validation.check_detect_watermark(request)
        tenant = tenant_from(context.invocation_metadata())
        return await self._detector.run(request, current_request_id(), tenant, time_left(context))

    @returns_last_message
    async def Resume(  # type: ignore[override]  # as above
        self, request: ResumeRequest, context: ServicerContext[ResumeRequest, ResumeResponse]
    ) -> ResumeResponse:
        validation.check_resume(request)
        name = Name(tenant_from(context.invocation_metadata()), request.request_id)
        writer = EventWriter(ResumeResponse, context.write, batched=request.batch_events)
        await self._requests.resume(name, places_of(request), writer.write)
        return writer.last

    async def CancelRequest(
        self, request: CancelRequestRequest, context: ServicerContext[CancelRequestRequest, CancelRequestResponse]
    ) -> CancelRequestResponse:
        validation.check_cancel_request(request)
        await self._requests.cancel(Name(tenant_from(context.invocation_metadata()), request.request_id))
        return CancelRequestResponse()

    async def ListModels(self, request: ListModelsRequest, context: Any) -> ListModelsResponse:  # noqa: ARG002
        return mapping.list_models(self.fleet.snapshot(), self._routing.aliases.view())

    def _seed(self) -> int:
        """For a request that names none."""
        return self._random.getrandbits(64)
