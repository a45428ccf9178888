"""Engine types → proto, nothing else. Pure. `step_message.py` packs what comes in every step; here is the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from weir.executor.v1 import executor_pb2 as pb
from weir.inference.v1.embedding_pb2 import Embedding
from weir.inference.v1.output_pb2 import FinishReason as ProtoFinishReason
from weir.inference.v1.output_pb2 import Usage
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir_chassis.errors import Internal, WeirError
from weir_chassis.status import to_failure
from weir_executor.adapters.operations import Read
from weir_executor.adapters.table import HeldAdapter
from weir_executor.engine import EngineLoad, RequestState, StepStats
from weir_executor.handoff.mapping import ROLES
from weir_executor.live_requests import LiveRequest
from weir_executor.mapping import Served
from weir_executor.sampling_mapping import MAX_LOGPROBS, MAX_N, SPECULATION_MODES
from weir_executor.step_output import FinishReason, RequestEnd, TokenOutput

_FINISH_REASONS: Mapping[FinishReason, ProtoFinishReason.ValueType] = {
    FinishReason.STOP: ProtoFinishReason.FINISH_REASON_STOP,
    FinishReason.LENGTH: ProtoFinishReason.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: ProtoFinishReason.FINISH_REASON_CANCELLED,
}


def to_finished(handle: int, output: TokenOutput, stop_token_ids: Collection[int]) -> pb.ExecutorOutputFinished:
    """`stop_token_ids` are those that the request named: an end-of-sequence token that it did not name is not told."""
    assert output.finish_reason is not None, output
    named = output.stop_token_id is not None and output.stop_token_id in stop_token_ids
    return pb.ExecutorOutputFinished(
        handle=handle,
        output_index=output.output_index,
        finish_reason=_FINISH_REASONS[output.finish_reason],
        stop_token_id=output.stop_token_id if named else None,
        guide_complete=output.finish_reason is FinishReason.STOP and output.stop_token_id is None,
    )


def to_request_end(
    handle: int, end: RequestEnd, handoff: pb.Handoff | None = None, loaded_by_tier: Mapping[str, int] | None = None
) -> pb.RequestEnd:
    return pb.RequestEnd(
        handle=handle,
        usage=Usage(
            prompt_tokens=end.prompt_tokens,
            cached_prompt_tokens=end.cached_prompt_tokens + end.loaded_prompt_tokens,
            completion_tokens=end.completion_tokens,
            draft_tokens=end.draft_tokens,
            accepted_draft_tokens=end.accepted_draft_tokens,
        ),
        engine_cached_tokens=end.cached_prompt_tokens,
        store_cached_tokens=end.loaded_prompt_tokens,
        preemptions=end.preemptions,
        queue=to_duration(end.queue_seconds),
        prefill=to_duration(end.prefill_seconds),
        decode=to_duration(end.decode_seconds),
        handoff=handoff,
        store_cached_tokens_by_tier=loaded_by_tier,
    )


def to_request_failed(handle: int, error: Exception) -> pb.RequestFailed:
    """An error that is not one of ours is a bug: its text may hold anything, so only its type is told."""
    known = (
        error if isinstance(error, WeirError) else Internal(f"the engine failed this request: {type(error).__name__}")
    )
    return pb.RequestFailed(handle=handle, failure=to_failure(known))


def to_embed_response(ends: Sequence[RequestEnd]) -> pb.EmbedResponse:
    """`ends` are those of the inputs, in their order."""
    return pb.EmbedResponse(
        embeddings=[Embedding(values=end.embedding) for end in ends],
        usage=Usage(
            prompt_tokens=sum(end.prompt_tokens for end in ends),
            cached_prompt_tokens=sum(end.cached_prompt_tokens + end.loaded_prompt_tokens for end in ends),
        ),
    )


def to_adapter(held: HeldAdapter) -> pb.Adapter:
    assert held.info is not None, held.name
    return pb.Adapter(
        name=held.name,
        rank=held.info.rank,
        fingerprint=held.info.fingerprint,
        bytes=held.info.num_bytes,
        live_requests=held.live,
    )


def to_load_adapter_response(said: Read | HeldAdapter) -> pb.LoadAdapterResponse:
    if isinstance(said, Read):
        return pb.LoadAdapterResponse(loaded_bytes=said.done, total_bytes=said.total)
    return pb.LoadAdapterResponse(adapter=to_adapter(said))


def to_model_info(served: Served) -> pb.GetModelInfoResponse:
    info, default = served.info, served.default_sampling
    return pb.GetModelInfoResponse(
        model_version=served.version,
        engine=info.engine,
        vocab_size=info.vocab_size,
        max_model_len=info.max_model_len,
        block_size=info.block_size,
        num_blocks=info.num_blocks,
        max_num_seqs=info.max_num_seqs,
        max_n=min(MAX_N, info.max_n),
        max_top_logprobs=min(MAX_LOGPROBS, info.max_top_logprobs),
        eos_token_ids=sorted(info.eos_token_ids),
        default_sampling=SamplingParameters(
            temperature=default.temperature,
            top_p=default.top_p,
            top_k=default.top_k,
            min_p=default.min_p,
            repetition_penalty=default.repetition_penalty,
            presence_penalty=default.presence_penalty,
            frequency_penalty=default.frequency_penalty,
            n=1,
        ),
        embedding_size=info.embedding_size,
        guides=served.takes_guides,
        max_adapters=info.max_adapters,
        speculation_modes=[mode for mode, ours in SPECULATION_MODES.items() if ours in info.speculation_modes],
        watermarks=served.watermark_keys is not None,
        compute=info.compute,
        role=ROLES[served.role],
        draws_anew=info.draws_anew,
        takes_more=True,
    )


def to_load(
    load: EngineLoad,
    *,
    epoch: int,
    live_streams: int,
    live_requests: int,
    live_handoffs: int,
    tokens_per_second: float,
) -> pb.GetLoadResponse:
    return pb.GetLoadResponse(
        epoch=epoch,
        step=load.step,
        waiting_requests=load.waiting_requests,
        running_sequences=load.running_sequences,
        free_blocks=load.free_blocks,
        total_blocks=load.total_blocks,
        cached_blocks=load.cached_blocks,
        outstanding_tokens=load.outstanding_tokens,
        preemptions=load.preemptions,
        last_step=to_duration(load.last_step_seconds),
        live_streams=live_streams,
        live_requests=live_requests,
        live_handoffs=live_handoffs,
        last_batch=_to_step_stats(load.last_batch) if load.last_batch else None,
        prefill_tokens=load.prefill_tokens,
        decode_tokens=load.decode_tokens,
        chunk_tokens=load.chunk_tokens,
        outstanding_prefill_tokens=load.outstanding_prefill_tokens,
        prefill_token_seconds=load.prefill_token_seconds.mean if load.prefill_token_seconds else None,
        tokens_per_second=tokens_per_second,
    )


def _to_step_stats(stats: StepStats) -> pb.StepStats:
    return pb.StepStats(
        sequences=stats.sequences,
        prefill_tokens=stats.prefill_tokens,
        decode_tokens=stats.decode_tokens,
        draft_tokens=stats.draft_tokens,
        duration=to_duration(stats.seconds),
    )


def to_request_state(request_id: str, adapter: str, state: RequestState) -> pb.RequestState:
    reason = state.waiting_reason
    waiting_reason = pb.WaitingReason.Value(f"WAITING_REASON_{reason.name}") if reason else None
    return pb.RequestState(
        request_id=request_id,
        tenant=state.tenant,
        priority=state.priority,
        adapter=adapter,
        running_sequences=state.running_sequences,
        waiting_sequences=state.waiting_sequences,
        waiting_reason=waiting_reason or pb.WAITING_REASON_UNSPECIFIED,
        age=to_duration(state.age_seconds),
        prompt_tokens=state.prompt_tokens,
        computed_tokens=state.computed_tokens,
        completion_tokens=state.completion_tokens,
        blocks=state.blocks,
        preemptions=state.preemptions,
    )


def to_unknown_state(live: LiveRequest, age_seconds: float) -> pb.RequestState:
    """Of a request that is being prepared for the engine, or that the engine has just ended."""
    assert live.lease is not None, live.key
    request, reason = live.request, pb.WAITING_REASON_UNSPECIFIED
    if live.preparing is not None:
        reason = pb.WAITING_REASON_GUIDE if live.waits_for_guide else pb.WAITING_REASON_STORED_PREFIX
    return pb.RequestState(
        request_id=live.lease.owner,
        tenant=request.tenant,
        priority=request.priority,
        adapter=request.adapter,
        waiting_sequences=request.n if live.preparing is not None else 0,
        waiting_reason=reason,
        age=to_duration(age_seconds),
        prompt_tokens=len(request.token_ids),
    )


def to_duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=max(0.0, seconds)))
    return duration
