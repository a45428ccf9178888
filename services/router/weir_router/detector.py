"""A DetectWatermark call's way: admit → tokenize → ask an executor of the model, and another one if that fails."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import grpc

from weir.executor.v1 import executor_pb2
from weir.router.v1.router_pb2 import DetectWatermarkRequest, DetectWatermarkResponse
from weir_chassis.channel import call_metadata
from weir_chassis.clock import Clock
from weir_chassis.deadline import hop_timeout
from weir_chassis.errors import InvalidArgument, NoWorker, WeirError
from weir_chassis.status import from_rpc_error
from weir_router.admission import Admission
from weir_router.call import Call, explain
from weir_router.encoder import Encoder
from weir_router.faults.breakers import watched
from weir_router.faults.retries import Retries
from weir_router.faults.table import Where
from weir_router.fleet.model_version import Version
from weir_router.metrics import RouterMetrics
from weir_router.models.models import Models
from weir_router.models.names import subject_of_tenant
from weir_router.policies.policy import Demand
from weir_router.routing import Routing
from weir_router.time_limit import time_limit

_Call = Call[DetectWatermarkRequest]


class Detector:
    def __init__(
        self,
        *,
        routing: Routing,
        admission: Admission,
        models: Models,
        encoder: Encoder,
        retries: Retries,
        clock: Clock,
        metrics: RouterMetrics,
    ):
        self._routing, self._fleet = routing, routing.fleet
        self._admission, self._models, self._encoder, self._retries = admission, models, encoder, retries
        self._clock, self._metrics = clock, metrics

    async def run(
        self, request: DetectWatermarkRequest, request_id: str, tenant: str, left_seconds: float | None
    ) -> DetectWatermarkResponse:
        """Raises a WeirError: refused, or failed. The request is valid."""
        residency = self._routing.residency(tenant)
        expires_at = None if left_seconds is None else self._clock.monotonic() + left_seconds
        call = Call(request, request_id, tenant, residency, self._clock, expires_at)
        try:
            async with time_limit(left_seconds):
                target = self._models.resolve(request.model, subject_of_tenant(tenant), residency)
                call.turn = self._routing.next_turn(target.model)
                self._retries.note_request()
                async with self._admission.place(0, request_id):
                    version, token_ids = await self._encoder.encode_text(target, request.text, call)
                    if len(token_ids) < 2:
                        raise InvalidArgument("text", "has no two tokens, and a mark lies between neighbours")
                    return await self._detect(call, version, token_ids)
        except WeirError as error:
            self._metrics.refused(error)
            raise

    async def _detect(self, call: _Call, version: Version, token_ids: Sequence[int]) -> DetectWatermarkResponse:
        excluded: frozenset[str] = frozenset()
        failure: WeirError | None = None
        for attempt in count(1):
            address = self._choose(call, version, excluded, failure)
            try:
                return await self._ask(call, version, token_ids, address)
            except WeirError as error:
                if not self._retries.may_retry(error, Where.BEFORE_FIRST_TOKEN, attempt):
                    raise
                failure, excluded = error, excluded | {address}
        raise AssertionError("attempts are counted without end")

    def _choose(self, call: _Call, version: Version, excluded: frozenset[str], failure: WeirError | None) -> str:
        """Nothing is computed that could not fit: the tokens need no place in an executor's context."""
        demand = Demand(version, prompt_tokens=1, max_tokens=1, n=1, turn=call.turn, excluded=excluded)
        try:
            return self._routing.rank(demand, call.residency)[0].candidate.address
        except NoWorker as error:
            raise failure or error from None

    async def _ask(
        self, call: _Call, version: Version, token_ids: Sequence[int], address: str
    ) -> DetectWatermarkResponse:
        asked = executor_pb2.DetectWatermarkRequest(
            model_version=version.message(),
            tenant=call.tenant,
            token_ids=token_ids,
            watermark=call.request.watermark,
        )
        link, timeout = self._fleet.executor(address, call.residency), hop_timeout(call.left_seconds())
        with watched(self._fleet.breakers.begin(address, version.model)):
            try:
                detection = link.stub.DetectWatermark(asked, timeout=timeout, metadata=call_metadata())
                found = await link.asked.answer(detection)
            except grpc.RpcError as error:
                raise explain(from_rpc_error(error), address) from None
        return DetectWatermarkResponse(
            scored_tokens=found.scored_tokens,
            green_tokens=found.green_tokens,
            z_score=found.z_score,
            p_value=found.p_value,
        )
