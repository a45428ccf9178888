"""The ExecutorService: validate, translate, call, translate back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from weir.executor.v1 import executor_pb2 as pb
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceServicer
from weir.kvstore.v1.block_chunk import BlockChunk
from weir_chassis.errors import Draining
from weir_chassis.kv_events.blocks import KvEventLog, told
from weir_chassis.leases import LeaseLedger
from weir_chassis.rate import Rate
from weir_chassis.telemetry import current_request
from weir_executor.adapters.operations import AdapterOperations
from weir_executor.adapters.table import AdapterTable
from weir_executor.admission import Admission
from weir_executor.caller_stream import CallerStream
from weir_executor.embed_call import EmbedCall
from weir_executor.engine import Engine, RequestState
from weir_executor.handoff.reading import HandoffReader
from weir_executor.handoff.table import HandoffTable
from weir_executor.live_requests import LiveRequest, LiveRequests
from weir_executor.mapping import Served, to_marked_tokens, to_pooling_requests
from weir_executor.replies import (
    to_adapter,
    to_embed_response,
    to_load,
    to_load_adapter_response,
    to_model_info,
    to_request_state,
    to_unknown_state,
)
from weir_executor.stream_pace import StreamPace
from weir_executor.watermark.detect import detect


class ExecutorServicer(ExecutorServiceServicer):
    def __init__(
        self,
        engine: Engine,
        served: Served,
        admission: Admission,
        *,
        adapters: AdapterTable,
        operations: AdapterOperations,
        requests: LiveRequests,
        handoffs: HandoffTable,
        kv_events: KvEventLog,
        token_rate: Rate,
        leases: LeaseLedger,
        max_buffered: int,
        deltas_per_second: float,
    ) -> None:
        self._engine, self._admission, self._requests = engine, admission, requests
        self._adapters, self._operations = adapters, operations
        self._handoffs, self._reader = handoffs, HandoffReader(engine, handoffs)
        self._kv_events, self._token_rate, self._leases = kv_events, token_rate, leases
        self._max_buffered, self._deltas_per_second = max_buffered, deltas_per_second
        self._served, self._model_info = served, to_model_info(served)
        self._streams: set[CallerStream] = set()

    async def Generate(
        self, request_iterator: AsyncIterator[pb.GenerateRequest], _: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        pace = StreamPace(self._deltas_per_second)
        stream = CallerStream(self._admission, self._handoffs, self._max_buffered, pace)
        self._streams.add(stream)
        reader = asyncio.create_task(stream.read(request_iterator), name="read-commands")
        request = current_request()
        with self._leases.acquire("stream", request.request_id if request else ""):
            try:
                while (message := await stream.next_message()) is not None:
                    yield message
            finally:
                # Before anything is awaited: the engine hears of it before its next step.
                stream.close()
                self._streams.discard(stream)
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    async def GetModelInfo(self, _: pb.GetModelInfoRequest, __: Any) -> pb.GetModelInfoResponse:
        return self._model_info

    async def GetLoad(self, _: pb.GetLoadRequest, __: Any) -> pb.GetLoadResponse:
        return to_load(
            self._engine.load(),
            epoch=self._kv_events.epoch,
            live_streams=len(self._streams),
            live_requests=len(self._requests),
            live_handoffs=len(self._handoffs),
            tokens_per_second=self._token_rate.per_second(),
        )

    async def WatchKvEvents(self, request: pb.WatchKvEventsRequest, _: Any) -> AsyncIterator[pb.WatchKvEventsResponse]:
        epoch = request.epoch if request.HasField("epoch") else None
        from_sequence = request.from_sequence if request.HasField("from_sequence") else None
        async with aclosing(self._kv_events.follow(epoch, from_sequence)) as batches:
            async for batch in batches:
                yield pb.WatchKvEventsResponse(epoch=self._kv_events.epoch, sequence=batch.sequence, events=told(batch))

    async def Embed(self, request: pb.EmbedRequest, _: Any) -> pb.EmbedResponse:
        with self._adapters.holding(request.adapter) as held:
            adapter = held.info if held is not None else None
            requests = await asyncio.to_thread(to_pooling_requests, request, self._served, adapter)
            return to_embed_response(await EmbedCall(self._admission).run(requests, request.request_id))

    async def ListRequests(self, _: pb.ListRequestsRequest, __: Any) -> pb.ListRequestsResponse:
        states = {state.key: state for state in self._engine.requests()}
        return pb.ListRequestsResponse(requests=[self._state(live, states.get(live.key)) for live in self._requests])

    def _state(self, live: LiveRequest, state: RequestState | None) -> pb.RequestState:
        """One that the engine does not know is on its way in or out."""
        assert live.lease is not None, live.key
        if state is None:
            return to_unknown_state(live, self._requests.age_seconds(live))
        return to_request_state(live.lease.owner, live.request.adapter, state)

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, _: Any) -> AsyncIterator[pb.LoadAdapterResponse]:
        base_revision = request.base_revision if request.HasField("base_revision") else None
        loading = self._operations.load(request.name, request.directory, base_revision)
        async with aclosing(loading) as messages:
            async for message in messages:
                yield to_load_adapter_response(message)

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, _: Any) -> AsyncIterator[pb.UnloadAdapterResponse]:
        async with aclosing(self._operations.unload(request.name)) as counts:
            async for count in counts:
                yield pb.UnloadAdapterResponse(live_requests=count)

    async def ListAdapters(self, _: pb.ListAdaptersRequest, __: Any) -> pb.ListAdaptersResponse:
        return pb.ListAdaptersResponse(adapters=map(to_adapter, self._adapters))

    async def ReadHandoff(  # type: ignore[override]  # chunks that are not copied, see `handoff_grpc`
        self, request: pb.ReadHandoffRequest, _: Any
    ) -> AsyncIterator[BlockChunk]:
        async with aclosing(self._reader.read(request.handoff_id, request.first_block)) as pieces:
            async for piece in pieces:
                yield piece

    async def ReleaseHandoff(self, request: pb.ReleaseHandoffRequest, _: Any) -> pb.ReleaseHandoffResponse:
        self._handoffs.release(request.handoff_id)
        return pb.ReleaseHandoffResponse()

    async def DetectWatermark(self, request: pb.DetectWatermarkRequest, _: Any) -> pb.DetectWatermarkResponse:
        token_ids, watermark = to_marked_tokens(request, self._served)
        found = await asyncio.to_thread(detect, token_ids, watermark.key, watermark.green_fraction)
        return pb.DetectWatermarkResponse(
            scored_tokens=found.scored_tokens,
            green_tokens=found.green_tokens,
            z_score=found.z_score,
            p_value=found.p_value,
        )

    async def drain(self) -> None:
        """Nothing new from now on; each stream ends when what lives on it has ended, and the watchers at once."""
        self._admission.drain()
        self._kv_events.close(Draining("the executor is shutting down"))
        for stream in self._streams:
            stream.drain()

    def fail(self, error: Exception) -> None:
        """The engine has stopped for good: every stream ends with this error, after its last words."""
        self._kv_events.close(error)
        for stream in list(self._streams):
            stream.fail(error)
