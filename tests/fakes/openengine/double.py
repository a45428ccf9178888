"""A server of `openengine.v1` as TensorRT-LLM's is, warts included, over the fake `LLM`; and as others' may be.

A status before a request is accepted and an event afterwards; tokens and the end in messages of their own; an aborted
request that ends some steps late; an abort that knows nothing of a request that has not begun; any model's name taken
for its own; refusals of what it does not support.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from fakes.openengine.translate import finished_event, kv_event, sampling_params, token_event
from fakes.trtllm.llm import LLM, library
from fakes.trtllm.results import RequestOutput
from weir.openengine.v1 import openengine_pb2 as pb
from weir.openengine.v1 import openengine_pb2_grpc as pb_grpc
from weir_executor.trtllm.config import TrtConfig, llm_arguments
from weir_executor.trtllm.observer import what_is_told
from weir_executor.trtllm.probe import probe

_EVENT_SECONDS = 0.005


@dataclass
class Traits:
    """What the server says of itself, and how it fails. May be changed while it runs."""

    model: str = "tiny"
    instance_id: str = "one"
    revision: int = 1
    role: pb.EngineRole.ValueType = pb.ENGINE_ROLE_UNSPECIFIED
    tells_events: bool = True
    tells_capacity: bool = True
    knows_salts: bool = True
    knows_priority: bool = False
    knows_bypass: bool = False
    knows_loras: bool = False
    stop_in_output: bool = True
    guided_backend: str | None = "xgrammar"
    max_top: int = 20
    health: pb.HealthState.ValueType = pb.HEALTH_STATE_READY
    # Faults.
    refuses_with: grpc.StatusCode | None = None  # the next requests, before they are accepted
    fails_with: pb.EngineError | None = None  # the next requests, after their first token
    fails_once: bool = False  # of them, the first alone
    says_nothing: bool = False  # requests are accepted, and never spoken of again
    breaks_off: bool = False  # after the first token, as if that were all: no last word
    mixes_up: bool = False  # what it says of requests is of others
    is_stuck: bool = False  # no call of the control service is answered
    keeps_last_word: bool = False  # after the last token nothing comes
    goes_on: bool = False  # beyond every stop token and limit: it does not know them
    hides_health: bool = False  # no such call
    loses_events: bool = False  # the next batch's number is skipped
    ignores_aborts: bool = False
    seen: list[pb.GenerateRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    loras: dict[str, pb.LoraAdapter] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    described: int = 0  # how often it was asked what it can


class OpenEngineDouble:
    """Serves on a thread of its own. `kill` ends it as a dead process does, `revive` starts another in its place."""

    def __init__(self, model_dir: Path, *, traits: Traits | None = None, port: int = 0, **limits: Any) -> None:
        self.traits, self._port = traits or Traits(), port
        self.config = TrtConfig(model_dir=model_dir, guided_backend=self.traits.guided_backend, **limits)  # type: ignore[arg-type]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openengine-double", daemon=True)
        self._thread.start()
        self.revive()

    @property
    def num_active(self) -> int:
        """Requests that it has accepted and not ended."""
        return len(self._servicer._active)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def revive(self, *, credentials: grpc.ServerCredentials | None = None) -> None:
        self.llm = _make_llm(self.config)
        self._run(self._start(credentials)).result(30)

    def kill(self) -> None:
        """Streams break off, connections are refused."""
        self._run(self._stop()).result(30)
        self.llm.resume()
        self.llm.shutdown()

    def close(self) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def restart_on(self, port: int, credentials: grpc.ServerCredentials) -> None:
        self.kill()
        self._port = port
        self.revive(credentials=credentials)

    def _run(self, work: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _start(self, credentials: grpc.ServerCredentials | None) -> None:
        self._servicer = Servicer(self.llm, self.traits, self.config)
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_InferenceServicer_to_server(self._servicer, self._server)
        pb_grpc.add_ControlServicer_to_server(self._servicer, self._server)
        where = f"127.0.0.1:{self._port}"
        if credentials is None:
            self._port = self._server.add_insecure_port(where)
        else:
            self._port = self._server.add_secure_port(where, credentials)
        await self._server.start()
        self._pump = asyncio.get_running_loop().create_task(self._servicer.pump_events())

    async def _stop(self) -> None:
        self._pump.cancel()
        await self._server.stop(None)


def _make_llm(config: TrtConfig) -> LLM:
    lib = library()
    longest = config.max_model_len or 512
    llm: LLM = lib.LLM(**llm_arguments(config, lib, probe(lib, allow_unknown=False), longest))
    return llm


class Servicer(pb_grpc.InferenceServicer, pb_grpc.ControlServicer):
    def __init__(self, llm: LLM, traits: Traits, config: TrtConfig) -> None:
        self._llm, self._is, self._config = llm, traits, config
        self._active: dict[str, RequestOutput] = {}
        self._history: list[pb.KvEventBatch] = []
        self._changed = asyncio.Event()
        self._number = 0

    # ── inference ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        self._is.seen.append(request)
        self._is.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        if self._is.refuses_with is not None:
            await context.abort(self._is.refuses_with, "as it was told to\nwith a prompt in its second line")
        if request.request_id in self._active:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, f"{request.request_id} is active")
        if "openengine-priority" in self._is.metadata[-1] and not self._is.knows_priority:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "openengine-priority")
        if request.lora_name and request.lora_name not in self._is.loras:
            await context.abort(grpc.StatusCode.NOT_FOUND, request.lora_name)
        if request.kv.bypass_prefix_cache and not self._is.knows_bypass:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "prefix cache bypass")
        try:
            sampling = sampling_params(request, goes_on=self._is.goes_on)
            result = self._llm.generate_async(
                inputs=list(request.token_ids.ids),
                sampling_params=sampling,
                streaming=True,
                cache_salt=request.kv.cache_salt if self._is.knows_salts else "",
            )
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        context.add_done_callback(lambda _: result.abort())
        self._active[request.request_id] = result
        try:
            async for response in self._speak(request, result):
                if self._is.mixes_up:
                    response.request_id = "another's"
                yield response
        except asyncio.CancelledError:
            raise
        except Exception as error:
            yield self._error(request, pb.ERROR_CODE_INTERNAL, str(error))
        finally:
            result.leave()
            del self._active[request.request_id]

    async def _speak(self, request: pb.GenerateRequest, result: RequestOutput) -> AsyncIterator[pb.GenerateResponse]:
        sent = 0
        async for newest in result:
            output = newest.outputs[0]
            if self._is.says_nothing:
                result.leave()
                await asyncio.Event().wait()
            new = output.token_ids[sent:]
            if new:
                top = request.response.output_candidates.top_n if request.response.return_output_logprobs else None
                yield token_event(request.request_id, new, output.logprobs[sent:], top)
                sent = len(output.token_ids)
                if self._is.breaks_off:
                    return
                if (error := self._is.fails_with) is not None:
                    self._is.fails_with = None if self._is.fails_once else error
                    yield pb.GenerateResponse(request_id=request.request_id, error=error)
                    return
            if output.finish_reason:
                if self._is.keeps_last_word:
                    result.leave()
                    await asyncio.Event().wait()
                yield finished_event(request.request_id, newest, int(self._llm_eos))
                return

    @property
    def _llm_eos(self) -> int:
        return 2

    def _error(self, request: pb.GenerateRequest, code: pb.ErrorCode.ValueType, message: str) -> pb.GenerateResponse:
        return pb.GenerateResponse(request_id=request.request_id, error=pb.EngineError(code=code, message=message))

    # ── control ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.ServerInfo:
        if self._is.is_stuck:
            await asyncio.Event().wait()
        capacity = pb.DeploymentCapacity()
        if self._is.tells_capacity:
            capacity.kv_block_size = self._config.block_size
            capacity.max_running_requests = self._config.max_num_seqs
            capacity.max_batched_tokens = self._config.max_batched_tokens
            capacity.total_kv_blocks = self._llm._pool.num_blocks
            capacity.max_loras = 2
        return pb.ServerInfo(
            engine_name="double",
            engine_version="1",
            engine_role=self._is.role,
            instance_id=self._is.instance_id,
            supported_models=[self._is.model],
            schema_revision=self._is.revision,
            minimum_client_revision=1,
            schema_release="v0.1.0",
            capacity=capacity,
        )

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.ModelInfo:
        self._is.described += 1
        logprobs = pb.LogprobCapabilities(
            supported=self._is.max_top > 0,
            candidate_selection_modes=[pb.CANDIDATE_TOKEN_SELECTION_MODE_TOP_N],
            max_top_n=self._is.max_top,
        )
        modes = [value for value in pb.GuidedDecodingMode.values() if value not in (0, 5)]
        guided = pb.GuidedDecodingCapabilities(
            supported=bool(self._is.guided_backend), modes=modes if self._is.guided_backend else []
        )
        can = pb.GenerationCapabilities(
            output_logprobs=logprobs,
            guided_decoding=guided,
            supports_priority=self._is.knows_priority,
            supports_stop_in_output=self._is.stop_in_output,
            supports_cache_salt=self._is.knows_salts,
            supports_prefix_cache_bypass=self._is.knows_bypass,
        )
        return pb.ModelInfo(
            model_id=self._is.model,
            served_model_name=self._is.model,
            max_context_length=self._config.max_model_len,
            supports_token_ids_input=True,
            generation=can,
            supports_lora=self._is.knows_loras,
        )

    async def GetLoad(self, request: pb.GetLoadRequest, context: Any) -> pb.LoadInfo:
        return pb.LoadInfo(
            running_requests=len(self._active),
            used_kv_blocks=max(0, self._llm._pool.used),
            total_kv_blocks=self._llm._pool.num_blocks,
        )

    async def Health(self, request: pb.HealthRequest, context: Any) -> pb.HealthResponse:
        if self._is.hides_health:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no health")
        check = pb.HealthCheck(name="model", state=self._is.health)
        return pb.HealthResponse(state=self._is.health, checks=[check])

    async def Abort(self, request: pb.AbortRequest, context: Any) -> pb.AbortResponse:
        self._is.aborted.append(request.request_id)
        result = self._active.get(request.request_id)
        if result is None:
            return pb.AbortResponse(status=pb.ABORT_STATUS_ALREADY_FINISHED)
        if not self._is.ignores_aborts:
            result.abort()
        return pb.AbortResponse(status=pb.ABORT_STATUS_ABORTED)

    async def LoadLora(self, request: pb.LoadLoraRequest, context: Any) -> pb.LoadLoraResponse:
        if not self._is.knows_loras:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no adapters")
        known = self._is.loras.get(request.adapter.lora_name)
        if known is not None and known != request.adapter:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, request.adapter.lora_name)
        self._is.loras[request.adapter.lora_name] = request.adapter
        return pb.LoadLoraResponse(adapter=request.adapter, already_loaded=known is not None)

    async def UnloadLora(self, request: pb.UnloadLoraRequest, context: Any) -> pb.UnloadLoraResponse:
        if request.lora_name not in self._is.loras:
            await context.abort(grpc.StatusCode.NOT_FOUND, request.lora_name)
        return pb.UnloadLoraResponse(adapter=self._is.loras.pop(request.lora_name))

    async def SubscribeKvEvents(
        self, request: pb.SubscribeKvEventsRequest, context: Any
    ) -> AsyncIterator[pb.SubscribeKvEventsResponse]:
        """What it has told before is its snapshot."""
        if not self._is.tells_events:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "subscribe elsewhere")
        told = 0 if request.include_snapshot else len(self._history)
        while True:
            changed = self._changed
            for batch in self._history[told:]:
                told += 1
                yield pb.SubscribeKvEventsResponse(batch=batch)
            await changed.wait()

    async def pump_events(self) -> None:
        while True:
            await asyncio.sleep(_EVENT_SECONDS)
            if not self._llm.submitted:
                continue  # it tells nothing before
            events = [event async for event in what_is_told(self._llm.get_kv_cache_events_async(timeout=0.0))]
            told = [each for event in events if (each := kv_event(event, self._config.block_size)) is not None]
            if not told:
                continue
            self._number += 1 + self._is.loses_events
            self._is.loses_events = False
            self._history.append(pb.KvEventBatch(sequence_number=self._number, events=told))
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
