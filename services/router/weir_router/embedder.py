"""An Embed call's way through the suite: admit → tokenize → choose → execute. One call to one executor, no stream.

Its place in the queue, its deadline and what may be tried again are as a generation's. The `with` blocks give back what
it held.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import grpc

from weir.executor.v1 import executor_pb2
from weir.router.v1.router_pb2 import EmbedRequest, EmbedResponse
from weir_chassis.channel import call_metadata
from weir_chassis.clock import Clock
from weir_chassis.deadline import hop_timeout
from weir_chassis.errors import NoWorker, PromptTooLong, WeirError, reason_name
from weir_chassis.leases import LeaseLedger
from weir_chassis.status import from_rpc_error
from weir_router.admission import Admission
from weir_router.call import Call, explain
from weir_router.encoder import Encoder
from weir_router.faults.breakers import watched
from weir_router.faults.retries import Retries
from weir_router.faults.table import Where
from weir_router.fleet.views import ExecutorModel
from weir_router.metrics import RouterMetrics
from weir_router.models.models import Models
from weir_router.models.names import subject_of_tenant
from weir_router.policies.policy import Demand
from weir_router.request import EncodedInputs
from weir_router.routing import Routing
from weir_router.time_limit import time_limit
from weir_router.validation import check_vocabulary


class Embedder:
    def __init__(
        self,
        *,
        routing: Routing,
        admission: Admission,
        models: Models,
        encoder: Encoder,
        retries: Retries,
        clock: Clock,
        leases: LeaseLedger,
        metrics: RouterMetrics,
    ):
        self._routing, self._fleet = routing, routing.fleet
        self._admission, self._models, self._encoder, self._retries = admission, models, encoder, retries
        self._clock, self._leases, self._metrics = clock, leases, metrics

    async def run(
        self, request: EmbedRequest, request_id: str, tenant: str, left_seconds: float | None
    ) -> EmbedResponse:
        """Raises a WeirError: refused, or failed. The request is valid."""
        residency = self._routing.residency(tenant)
        expires_at = None if left_seconds is None else self._clock.monotonic() + left_seconds
        call = Call(request, request_id, tenant, residency, self._clock, expires_at)
        try:
            async with time_limit(left_seconds):
                # By tenant: vectors of two versions cannot be compared.
                target = self._models.resolve(request.model, subject_of_tenant(tenant), residency)
                call.turn = self._routing.next_turn(target.model)
                self._retries.note_request()
                async with self._admission.place(request.priority, request_id):
                    inputs = await self._encoder.encode_inputs(target, request.inputs, request.adapter, tenant, call)
                    return await self._embed(call, inputs)
        except WeirError as error:
            self._metrics.refused(error)
            raise

    async def _embed(self, call: Call[EmbedRequest], inputs: EncodedInputs) -> EmbedResponse:
        """Attempts until one succeeds or fails for good. `excluded` are the executors that failed it."""
        excluded: frozenset[str] = frozenset()
        failure: WeirError | None = None
        for attempt in count(1):
            address, model = self._choose(call, inputs, excluded, failure)
            _check_inputs(call.request, inputs, model)
            try:
                with self._attempt(call, address, sum(map(len, inputs.token_ids))):
                    return await self._execute(call, inputs, address)
            except WeirError as error:
                if not self._retries.may_retry(error, Where.BEFORE_FIRST_TOKEN, attempt):
                    raise
                failure, excluded = error, excluded | {address}
        raise AssertionError("attempts are counted without end")

    def _choose(
        self, call: Call[EmbedRequest], inputs: EncodedInputs, excluded: frozenset[str], failure: WeirError | None
    ) -> tuple[str, ExecutorModel]:
        longest = max(map(len, inputs.token_ids))
        demand = Demand(
            inputs.version, longest, max_tokens=0, n=1, turn=call.turn, excluded=excluded, adapter=inputs.adapter
        )
        try:
            best = self._routing.rank(demand, call.residency)[0].candidate
            return best.address, best.model
        except NoWorker as error:
            # That nobody else is there matters less to the client than what happened.
            raise failure or error from None
        except PromptTooLong as error:
            index = next(index for index, token_ids in enumerate(inputs.token_ids) if len(token_ids) == longest)
            raise PromptTooLong(f"inputs[{index}]", longest, int(error.metadata["limit"])) from None

    @contextmanager
    def _attempt(self, call: Call[EmbedRequest], address: str, tokens: int) -> Iterator[None]:
        """Counts the inputs against their executor at once, before anybody else chooses."""
        reservation = self._fleet.executor(address, call.residency).outstanding.reserve(tokens)
        end = "CANCELLED"
        with self._leases.acquire("attempt", call.request_id, on_release=reservation.release):
            try:
                yield
                end = "OK"
            except WeirError as error:
                end = reason_name(error.reason)
                raise
            finally:
                self._metrics.attempts.labels(end).inc()

    async def _execute(self, call: Call[EmbedRequest], inputs: EncodedInputs, address: str) -> EmbedResponse:
        asked = executor_pb2.EmbedRequest(
            request_id=call.request_id,
            model_version=inputs.version.message(),
            inputs=[executor_pb2.EmbedInput(token_ids=token_ids) for token_ids in inputs.token_ids],
            pooling=call.request.pooling,
            adapter=inputs.adapter,
            normalize=call.request.normalize if call.request.HasField("normalize") else None,
            priority=call.request.priority,
            tenant=call.tenant,
            tenant_salt=inputs.tenant_salt,
        )
        link, timeout = self._fleet.executor(address, call.residency), hop_timeout(call.left_seconds())
        with watched(self._fleet.breakers.begin(address, inputs.version.model)):
            try:
                embedding = link.stub.Embed(asked, timeout=timeout, metadata=call_metadata())
                answer = await link.asked.answer(embedding)
            except grpc.RpcError as error:
                raise explain(from_rpc_error(error), address) from None
        return EmbedResponse(embeddings=answer.embeddings, usage=answer.usage, model_version=inputs.version.message())


def _check_inputs(request: EmbedRequest, inputs: EncodedInputs, model: ExecutorModel) -> None:
    """What the client chose itself; a tokenizer's ids are of its own vocabulary."""
    for index, (one, token_ids) in enumerate(zip(request.inputs, inputs.token_ids, strict=True)):
        if one.HasField("token_ids"):
            check_vocabulary(token_ids, model.vocab_size, f"inputs[{index}].token_ids.token_ids")
