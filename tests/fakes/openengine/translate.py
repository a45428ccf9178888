"""Between the contract's messages and the fake `LLM`'s objects, as TensorRT-LLM's server translates them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fakes.trtllm.params import GuidedDecodingParams, SamplingParams
from fakes.trtllm.results import Logprob, RequestOutput
from weir.openengine.v1 import openengine_pb2 as pb

_MAX_CONDITIONS = 64
_EOS = 2
_REASONS = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "cancelled": pb.FINISH_REASON_CANCELLED,
}


def sampling_params(request: pb.GenerateRequest, *, goes_on: bool) -> SamplingParams:
    """Raises ValueError for what TensorRT-LLM refuses."""
    sampling, stopping = request.sampling, request.stopping
    if not request.request_id or not request.model or request.WhichOneof("input") != "token_ids":
        raise ValueError("request_id, model and token_ids must be set")
    if sampling.num_sequences > 1:
        raise ValueError("the double draws one output for each request")
    if len(stopping.conditions) > _MAX_CONDITIONS:
        raise ValueError(f"at most {_MAX_CONDITIONS} stopping conditions")
    stops = [condition.stop_token_id for condition in stopping.conditions]
    top_n = request.response.output_candidates.top_n if request.response.return_output_logprobs else None
    return SamplingParams(
        end_id=_EOS,
        pad_id=_EOS,
        max_tokens=stopping.max_tokens + (50 if goes_on else 0),
        min_tokens=stopping.min_tokens or None,
        stop_token_ids=None if goes_on else stops or None,
        include_stop_str_in_output=stopping.include_stop_in_output,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed,
        logprobs=top_n,
        ignore_eos=stopping.ignore_eos or goes_on,
        guided_decoding=_guided(request.guided) if request.HasField("guided") else None,
    )


def _guided(asked: pb.GuidedDecoding) -> GuidedDecodingParams:
    match asked.WhichOneof("guide"):
        case "json_schema":
            return GuidedDecodingParams(json=asked.json_schema)
        case "regex":
            return GuidedDecodingParams(regex=asked.regex)
        case "ebnf_grammar":
            return GuidedDecodingParams(grammar=asked.ebnf_grammar)
        case "structural_tag":
            return GuidedDecodingParams(structural_tag=asked.structural_tag)
    return GuidedDecodingParams(json_object=True)


def token_event(
    request_id: str, token_ids: Sequence[int], logprobs: Sequence[Mapping[int, Logprob]], top: int | None
) -> pb.GenerateResponse:
    infos = []
    for place, token_id in enumerate(token_ids):
        info = pb.TokenInfo(token_id=token_id)
        if top is not None:
            told = logprobs[place]
            info.logprob = told[token_id].logprob
            ranked = sorted((each.rank or 0, other, each.logprob) for other, each in told.items())
            info.candidates.extend(
                pb.LogProb(token_id=other, logprob=logprob) for rank, other, logprob in ranked if rank <= top
            )
        infos.append(info)
    return pb.GenerateResponse(request_id=request_id, token=pb.TokenOutput(output_index=0, tokens=infos))


def finished_event(request_id: str, result: RequestOutput, eos: int) -> pb.GenerateResponse:
    """The end has no tokens with it."""
    output = result.outputs[0]
    finished = pb.GenerationFinished(output_index=0, reason=_REASONS[output.finish_reason or ""])
    if output.finish_reason == "stop":
        if isinstance(output.stop_reason, int):
            finished.stop_match.stop_token_id = output.stop_reason
        else:
            finished.stop_match.eos_token_id = eos
    prompt, completion = len(result.prompt_token_ids), len(output.token_ids)
    usage = pb.Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        cached_prompt_tokens=result.cached_tokens,
    )
    return pb.GenerateResponse(request_id=request_id, finished=finished, usage=usage)


def kv_event(event: Mapping[str, Any], block_size: int) -> pb.KvEvent | None:
    data = event["data"]
    match data["type"]:
        case "stored":
            blocks = data["blocks"]
            stored = pb.BlockStored(
                block_hashes=[_hash(block["block_hash"]) for block in blocks],
                token_ids=[token["token_id"] for block in blocks for token in block["tokens"]],
                block_size=block_size,
                medium=pb.STORAGE_MEDIUM_GPU,
                extra_keys=[pb.OpaqueKeyTuple(values=[block["cache_salt"]]) for block in blocks],
            )
            if data["parent_hash"] is not None:
                stored.parent_block_hash.CopyFrom(_hash(data["parent_hash"]))
            return pb.KvEvent(block_stored=stored)
        case "removed":
            hashes = [_hash(each) for each in data["block_hashes"]]
            return pb.KvEvent(block_removed=pb.BlockRemoved(block_hashes=hashes, medium=pb.STORAGE_MEDIUM_GPU))
    return None


def _hash(number: int) -> pb.KvBlockHash:
    return pb.KvBlockHash(value=number.to_bytes(8, "little"), encoding="int64")
