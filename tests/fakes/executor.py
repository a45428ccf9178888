"""An executor that answers a prompt with the prompt's own tokens, one per step, and then ends.

Output i begins at the prompt's token i, so that outputs differ. It draws round the prompt again when the
end-of-sequence token may not come yet. It keeps the contract of one stream: every submit ends once, an abort is seen
before the next step, a request that is refused leaves its neighbours as they are.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fakes import bytes_model
from fakes.faults import Crash
from weir.executor.v1 import executor_pb2 as pb
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceServicer
from weir.inference.v1.embedding_pb2 import Embedding, Pooling
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.output_pb2 import FinishReason, RowLogprobs, TokenBatch, Usage
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir.kvstore.v1.block_hash import split_hashes
from weir_chassis.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    ModelNotFound,
    NotFound,
    PromptTooLong,
    RevisionMismatch,
    Unsupported,
    WeirError,
)
from weir_chassis.kv_events.blocks import new_log, stored, told
from weir_chassis.limits import MAX_JOINED
from weir_chassis.status import to_failure

NAME = pb.DESCRIPTOR.services_by_name["ExecutorService"].full_name


@dataclass
class Live:
    """One request: per output that still draws, how many tokens it has."""

    submit: pb.Submit
    drawn: dict[int, int]
    accepted: bool = False
    completion_tokens: int = 0
    # Blocks of the prompt that were there when it came.
    cached_blocks: int = 0
    # Some output of it is for another executor to go on with.
    handed_over: bool = False
    # Monotonic seconds; None: never.
    expires_at: float | None = None

    @property
    def max_tokens(self) -> int:
        room = bytes_model.MAX_MODEL_LEN - len(self.submit.token_ids)
        stopping = self.submit.stopping
        return min(stopping.max_tokens, room) if stopping.HasField("max_tokens") else room

    def draw(self, output_index: int) -> int:
        """The next token of an output."""
        prompt, position = self.submit.token_ids, self.drawn[output_index]
        stopping = self.submit.stopping
        at_end = position == len(prompt) and not stopping.ignore_eos and position >= stopping.min_tokens
        return bytes_model.EOS if at_end else prompt[(position + output_index) % len(prompt)]


class FakeExecutor(ExecutorServiceServicer):
    """What a test may look at: `submits`, `aborts`, `embeds`, `live`, `steps`, `max_rows`. The rest it may set."""

    def __init__(
        self,
        version: ModelVersion = bytes_model.VERSION,
        *,
        block_size: int = bytes_model.BLOCK_SIZE,
        step_seconds: float = 0.0,
        role: pb.ExecutorRole.ValueType = pb.EXECUTOR_ROLE_BOTH,
        compute: str = "arithmetic",
        draws_anew: bool = False,
    ):
        self.version, self.block_size, self.role, self.compute = version, block_size, role, compute
        self.draws_anew = draws_anew
        # What ended requests left, by handoff: the stream and the handle that they came by.
        self.handoffs: dict[str, tuple[_Stream, int]] = {}
        # Between two steps. 0: as fast as the loop turns.
        self.step_seconds = step_seconds
        self.crash = Crash()
        # While it is not set, no step is made: a worker that hangs.
        self.running = asyncio.Event()
        self.running.set()
        # Whether it answers no question either, meanwhile: as a process that was stopped.
        self.deaf = False
        # Given to each request that comes, instead of tokens.
        self.refusal: WeirError | None = None
        # Tokens after which nothing more is drawn for an output, until `resume`; None: all.
        self.pause_after: int | None = None
        # Never says the last word on a request.
        self.forgets_ends = False
        self.drafts = (0, 0)  # what its usage says: checked, and of them accepted
        self.submits: list[pb.Submit] = []
        self.aborts: list[pb.Abort] = []
        self.embeds: list[pb.EmbedRequest] = []
        self.live_embeds = 0
        # Told to whoever watches. With `holds_blocks`, prompts leave their blocks here, and are found again.
        self.kv_events = new_log(1, 10_000)
        self.holds_blocks = False
        self.held: set[bytes] = set()
        self.watchers = 0
        # Name → fingerprint.
        self.adapters: dict[str, str] = {}
        self.adapters_told = 0  # how often
        self.detections: list[pb.DetectWatermarkRequest] = []
        self.steps = 0
        self.max_rows = 0
        self.foreign_tokens = 0
        self._streams: list[_Stream] = []

    @property
    def live(self) -> int:
        return self.live_embeds + sum(len(stream.live) for stream in self._streams)

    @property
    def positions(self) -> list[int]:
        """Tokens that each output which is still drawn has."""
        return [drawn for stream in self._streams for live in stream.live.values() for drawn in live.drawn.values()]

    def fail_live(self, error: WeirError) -> None:
        """Each request that lives fails by itself, and its stream goes on."""
        for stream in self._streams:
            for handle in stream.live:
                stream.outgoing.failed.add(handle=handle, failure=to_failure(error))
            stream.live.clear()
            stream.work.set()

    def resume(self) -> None:
        """Goes on drawing after a pause."""
        self.pause_after = None
        for stream in self._streams:
            stream.work.set()

    async def Generate(
        self, request_iterator: AsyncIterator[pb.GenerateRequest], context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.crash.check()
        stream = _Stream(self)
        self._streams.append(stream)
        reader = asyncio.create_task(stream.read(request_iterator))
        crash = asyncio.create_task(self.crash.wait())
        try:
            while not reader.done() or stream.live:
                stream.work.clear()
                response = stream.step() if self.running.is_set() else None
                if response is not None:
                    self.steps += 1
                    yield response
                    await asyncio.sleep(self.step_seconds)
                else:
                    await _first(reader, crash, *self._waits(stream))
                self.crash.check()
            await reader
        finally:
            self._streams.remove(stream)
            self.drop_handoffs(stream)
            for task in (reader, crash):
                task.cancel()
            await asyncio.gather(reader, crash, return_exceptions=True)

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.GetModelInfoResponse:
        self.crash.check()
        return pb.GetModelInfoResponse(
            model_version=self.version,
            engine="fake",
            compute=self.compute,
            draws_anew=self.draws_anew,
            vocab_size=bytes_model.VOCAB_SIZE,
            max_model_len=bytes_model.MAX_MODEL_LEN,
            block_size=self.block_size,
            num_blocks=1024,
            max_num_seqs=256,
            max_n=16,
            max_top_logprobs=20,
            eos_token_ids=[bytes_model.EOS],
            default_sampling=SamplingParameters(temperature=1.0),
            embedding_size=4,
            max_adapters=4,
            role=self.role,
            takes_more=True,
        )

    async def GetLoad(self, request: pb.GetLoadRequest, context: Any) -> pb.GetLoadResponse:
        self.crash.check()
        if self.deaf:
            await self.running.wait()
        owed = sum(stream.owed_tokens() for stream in self._streams)
        return pb.GetLoadResponse(
            epoch=1,
            step=self.steps,
            running_sequences=sum(len(live.drawn) for stream in self._streams for live in stream.live.values()),
            outstanding_tokens=self.foreign_tokens + owed,
            total_blocks=1024,
            free_blocks=1024,
            live_streams=len(self._streams),
            live_requests=self.live,
        )

    async def WatchKvEvents(
        self, request: pb.WatchKvEventsRequest, context: Any
    ) -> AsyncIterator[pb.WatchKvEventsResponse]:
        self.crash.check()
        epoch = request.epoch if request.HasField("epoch") else None
        from_sequence = request.from_sequence if request.HasField("from_sequence") else None
        log = self.kv_events
        batches = log.follow(epoch, from_sequence)
        self.watchers += 1
        try:
            async with aclosing(batches), aclosing(self.crash.guard(batches)) as guarded:
                async for batch in guarded:
                    yield pb.WatchKvEventsResponse(epoch=log.epoch, sequence=batch.sequence, events=told(batch))
        finally:
            self.watchers -= 1

    def hold(self, block_hashes: bytes) -> int:
        """Keeps a prompt's blocks, and tells; how many it held already."""
        if not self.holds_blocks:
            return 0
        hashes = split_hashes(block_hashes)
        known = next((i for i, block_hash in enumerate(hashes) if block_hash not in self.held), len(hashes))
        self.held.update(hashes)
        parent = hashes[known - 1] if known else b""
        self.kv_events.append(list(stored(hashes[known:], parent, tier="device")))
        return known

    def restart(self) -> None:
        """What it held is gone, as after a crash, and its log begins anew."""
        self.held.clear()
        self.kv_events = new_log(self.kv_events.epoch + 1, 10_000)

    def _waits(self, stream: _Stream) -> list[Any]:
        return [stream.work.wait()] if self.running.is_set() else [self.running.wait()]

    async def Embed(self, request: pb.EmbedRequest, _: Any) -> pb.EmbedResponse:
        """As many steps as there are inputs."""
        self.crash.check()
        self.embeds.append(request)
        if self.refusal is not None:
            raise self.refusal
        self.live_embeds += 1
        try:
            for _ in request.inputs:
                await self.running.wait()
                await asyncio.sleep(self.step_seconds)
                self.crash.check()
            usage = Usage(prompt_tokens=sum(len(one.token_ids) for one in request.inputs))
            return pb.EmbedResponse(embeddings=[_embedding(request, one) for one in request.inputs], usage=usage)
        finally:
            self.live_embeds -= 1

    async def ListRequests(self, _: pb.ListRequestsRequest, __: Any) -> pb.ListRequestsResponse:
        raise Unsupported("this engine does not tell its requests apart")

    async def LoadAdapter(self, _: pb.LoadAdapterRequest, __: Any) -> AsyncIterator[pb.LoadAdapterResponse]:
        raise Unsupported("this engine has no adapters")
        yield

    async def UnloadAdapter(self, _: pb.UnloadAdapterRequest, __: Any) -> AsyncIterator[pb.UnloadAdapterResponse]:
        raise Unsupported("this engine has no adapters")
        yield

    async def ListAdapters(self, _: pb.ListAdaptersRequest, __: Any) -> pb.ListAdaptersResponse:
        self.adapters_told += 1
        adapters = [pb.Adapter(name=name, fingerprint=found) for name, found in self.adapters.items()]
        return pb.ListAdaptersResponse(adapters=adapters)

    async def ReadHandoff(self, request: pb.ReadHandoffRequest, _: Any) -> AsyncIterator[pb.ReadHandoffResponse]:
        """It holds no bytes: whoever takes over finds them gone."""
        self.crash.check()
        if request.handoff_id not in self.handoffs:
            raise NotFound(request.handoff_id, "no such handoff")
        return
        yield

    async def ReleaseHandoff(self, request: pb.ReleaseHandoffRequest, _: Any) -> pb.ReleaseHandoffResponse:
        self.crash.check()
        self.handoffs.pop(request.handoff_id, None)
        return pb.ReleaseHandoffResponse()

    def drop_handoffs(self, stream: _Stream, handle: int | None = None) -> None:
        """Those of a stream, or of one of its requests."""
        for handoff_id, (of_stream, of_handle) in list(self.handoffs.items()):
            if of_stream is stream and handle in (None, of_handle):
                del self.handoffs[handoff_id]

    async def DetectWatermark(self, request: pb.DetectWatermarkRequest, _: Any) -> pb.DetectWatermarkResponse:
        """Of any tokens: one is green, and all but the first are scored."""
        self.crash.check()
        await self.running.wait()
        self.detections.append(request)
        if self.refusal is not None:
            raise self.refusal
        scored = len(request.token_ids) - 1
        return pb.DetectWatermarkResponse(scored_tokens=scored, green_tokens=1, z_score=0.5, p_value=0.25)


@dataclass
class _Stream:
    """One caller."""

    executor: FakeExecutor
    live: dict[int, Live] = field(default_factory=dict)
    outgoing: pb.GenerateResponse = field(default_factory=pb.GenerateResponse)
    work: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, requests: AsyncIterator[pb.GenerateRequest]) -> None:
        async for request in requests:
            if len(request.more) > MAX_JOINED:
                raise InvalidArgument("more", f"{len(request.more)} commands, the limit is {MAX_JOINED}")
            if any(following.more for following in request.more):
                raise InvalidArgument("more.more", "a command that follows has none itself")
            for command in (request, *request.more):
                self._do(command)
            self.work.set()

    def _do(self, command: pb.GenerateRequest) -> None:
        if command.HasField("submit"):
            self._submit(command.submit)
        elif command.HasField("abort"):
            self._abort(command.abort)
        else:
            raise InvalidArgument("command", "is required: `submit` or `abort`")

    def step(self) -> pb.GenerateResponse | None:
        """Everything that has happened since the step before, and one more token for each output; None: nothing."""
        response, self.outgoing = self.outgoing, pb.GenerateResponse()
        for handle, live in list(self.live.items()):
            if live.expires_at is not None and time.monotonic() >= live.expires_at:
                del self.live[handle]
                response.failed.add(handle=handle, failure=to_failure(DeadlineExceeded("no time is left")))
                continue
            if not live.accepted:
                live.accepted = True
                response.accepted_handles.append(handle)
            for output_index in list(live.drawn):
                self._draw(response, handle, live, output_index)
            self._end_if_done(response, handle, live)
        self.executor.max_rows = max(self.executor.max_rows, len(response.tokens.handles))
        return response if response.ByteSize() else None

    def owed_tokens(self) -> int:
        return sum(live.max_tokens - drawn for live in self.live.values() for drawn in live.drawn.values())

    def _submit(self, submit: pb.Submit) -> None:
        self.executor.submits.append(submit)
        error = self.executor.refusal or self._problem(submit)
        if error is not None:
            self.outgoing.failed.add(handle=submit.handle, failure=to_failure(error))
            return
        resumed = {output.output_index: len(output.token_ids) for output in submit.resumed_outputs}
        live = Live(submit, {i: resumed.get(i, 0) for i in range(submit.sampling.n or 1)})
        live.cached_blocks = self.executor.hold(submit.block_hashes)
        if submit.HasField("time_left"):
            live.expires_at = time.monotonic() + submit.time_left.ToTimedelta().total_seconds()
        self.live[submit.handle] = live

    def _abort(self, abort: pb.Abort) -> None:
        self.executor.aborts.append(abort)
        live = self.live.get(abort.handle)
        if live is None:
            if not abort.HasField("output_index"):
                self.executor.drop_handoffs(self, abort.handle)
            return
        aborted = [abort.output_index] if abort.HasField("output_index") else list(live.drawn)
        for output_index in aborted:
            if live.drawn.pop(output_index, None) is not None:
                self._finish(self.outgoing, abort.handle, output_index, FinishReason.FINISH_REASON_CANCELLED)
        self._end_if_done(self.outgoing, abort.handle, live)

    def _problem(self, submit: pb.Submit) -> WeirError | None:  # noqa: PLR0911  # one return per rule
        version = self.executor.version
        if submit.handle in self.live:
            return AlreadyExists(str(submit.handle), "the handle lives")
        if submit.model_version.model != version.model:
            return ModelNotFound(submit.model_version.model, [version.model])
        if submit.model_version != version:
            asked = submit.model_version.revision
            return RevisionMismatch(
                "another revision", metadata={"asked_revision": asked, "revision": version.revision}
            )
        if self.executor.role == pb.EXECUTOR_ROLE_PREFILL and not submit.hand_off:
            return Unsupported("the role is prefill")
        if submit.stopping.stop:
            return InvalidArgument("stopping.stop", "must be empty: stop strings are postprocess's")
        if submit.adapter and submit.adapter not in self.executor.adapters.values():
            return NotFound(submit.adapter, "no such adapter")
        if not submit.token_ids:
            return InvalidArgument("token_ids", "must not be empty")
        if len(submit.token_ids) >= bytes_model.MAX_MODEL_LEN:
            return PromptTooLong("token_ids", len(submit.token_ids), bytes_model.MAX_MODEL_LEN - 1)
        return None

    def _draw(self, response: pb.GenerateResponse, handle: int, live: Live, output_index: int) -> None:
        position, pause = live.drawn[output_index], self.executor.pause_after
        if pause is not None and position >= pause:
            return
        if position >= live.max_tokens:  # it was resumed at its end
            self._finish(response, handle, output_index, FinishReason.FINISH_REASON_LENGTH)
            del live.drawn[output_index]
            return
        token_id = live.draw(output_index)
        _add_row(response.tokens, handle, output_index, position, token_id)
        _add_logprobs(response.tokens, live.submit, token_id)
        live.drawn[output_index] += 1
        live.completion_tokens += 1
        stopping = live.submit.stopping
        named = token_id in stopping.stop_token_ids and position >= stopping.min_tokens
        if token_id == bytes_model.EOS or named:
            self._finish(response, handle, output_index, FinishReason.FINISH_REASON_STOP, token_id)
            del live.drawn[output_index]
        elif live.drawn[output_index] >= live.max_tokens:
            self._finish(response, handle, output_index, FinishReason.FINISH_REASON_LENGTH)
            del live.drawn[output_index]
        elif live.submit.hand_off:
            live.handed_over = True
            del live.drawn[output_index]

    def _finish(
        self,
        response: pb.GenerateResponse,
        handle: int,
        output_index: int,
        reason: FinishReason.ValueType,
        token_id: int | None = None,
    ) -> None:
        row = response.finished.add(handle=handle, output_index=output_index, finish_reason=reason)
        if token_id is not None and token_id != bytes_model.EOS:
            row.stop_token_id = token_id

    def _end_if_done(self, response: pb.GenerateResponse, handle: int, live: Live) -> None:
        if live.drawn:
            return
        del self.live[handle]
        if self.executor.forgets_ends:
            return
        prompt_tokens = len(live.submit.token_ids)
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=live.completion_tokens)
        usage.draft_tokens, usage.accepted_draft_tokens = self.executor.drafts
        usage.cached_prompt_tokens = live.cached_blocks * self.executor.block_size
        end = response.ended.add(handle=handle, usage=usage, engine_cached_tokens=usage.cached_prompt_tokens)
        if live.handed_over:
            end.handoff.CopyFrom(self._hand_off(handle, live))

    def _hand_off(self, handle: int, live: Live) -> pb.Handoff:
        num_blocks = len(live.submit.block_hashes) // 16
        if not num_blocks:
            return pb.Handoff()
        handoff_id = f"{id(self):x}-{handle}"
        self.executor.handoffs[handoff_id] = (self, handle)
        return pb.Handoff(handoff_id=handoff_id, num_blocks=num_blocks, namespace=bytes(16))


def _embedding(request: pb.EmbedRequest, one: pb.EmbedInput) -> Embedding:
    """How many tokens there are, the last of them, and for a mean their sum."""
    is_mean = request.pooling == Pooling.POOLING_MEAN
    values = [float(len(one.token_ids)), float(one.token_ids[-1]), float(sum(one.token_ids)) if is_mean else 0.0, 1.0]
    length = 1.0 if request.HasField("normalize") and not request.normalize else math.hypot(*values)
    return Embedding(values=[value / length for value in values])


def _add_row(batch: TokenBatch, handle: int, output_index: int, position: int, token_id: int) -> None:
    batch.handles.append(handle)
    batch.output_indexes.append(output_index)
    batch.first_token_indexes.append(position)
    batch.token_counts.append(1)
    batch.token_ids.append(token_id)


def _add_logprobs(batch: TokenBatch, submit: pb.Submit, token_id: int) -> None:
    """Certain of what it draws; the k-th best is k tokens further on and e^k times less likely."""
    if not submit.sampling.HasField("logprobs"):
        return
    k = submit.sampling.logprobs
    top_ids = [(token_id + i) % bytes_model.VOCAB_SIZE for i in range(k)]
    top = [float(-i) for i in range(k)]
    row = len(batch.handles) - 1
    batch.logprobs.append(RowLogprobs(row=row, logprobs=[0.0], top_count=k, top_token_ids=top_ids, top_logprobs=top))


async def _first(*waits: Any) -> None:
    """Returns when one of these is done. Tasks that were passed in go on; what was started here is ended."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        own = [task for task, wait in zip(tasks, waits, strict=True) if task is not wait]
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)
