"""One output of a request → the keyword arguments of `SamplingParams`. Pure.

Every field that matters is filled: what is left out means greedy and 32 tokens there. Each output is a request of its
own to the engine, so that it can be aborted alone, resumed alone, and drawn greedily beside its siblings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weir_chassis.errors import Unsupported
from weir_executor.engine import EngineInfo
from weir_executor.foreign.seeds import seed_of
from weir_executor.request import GenerationRequest
from weir_executor.trtllm.guides import guide_arguments
from weir_executor.trtllm.library import Library
from weir_executor.trtllm.probe import Capabilities
from weir_executor.trtllm.stops_held_back import StopsHeldBack


def check_sampling(request: GenerationRequest) -> None:
    """Raises Unsupported for what this engine has not."""
    if request.sampling.watermark is not None:
        raise Unsupported("sampling.watermark: TensorRT-LLM has none")


def sampling_arguments(
    request: GenerationRequest,
    output_index: int,
    info: EngineInfo,
    can: Capabilities,
    library: Library,
    *,
    goes_on: bool = False,
) -> dict[str, Any]:
    """Of `SamplingParams(...)`. `request` has passed `check_sampling`.

    `goes_on`: tokens that were resumed are the engine's own to it, and count; else they are a part of its prompt.
    """
    asked, resumed = request.sampling, 0 if goes_on else len(request.resumed.get(output_index, ()))
    end_id, *others = sorted(info.eos_token_ids)
    stops = sorted(request.stop_token_ids | (frozenset() if request.ignore_eos else frozenset(others)))
    arguments: dict[str, Any] = {
        "n": 1,
        "max_tokens": request.max_tokens - resumed,
        "min_tokens": max(0, request.min_tokens - resumed) or None,
        "end_id": end_id,
        "pad_id": end_id,
        "ignore_eos": request.ignore_eos,
        "stop_token_ids": stops or None,
        "include_stop_str_in_output": True,
        "temperature": asked.temperature or 1.0,
        "top_k": asked.top_k if asked.temperature else 1,
        "top_p": asked.top_p,
        "min_p": asked.min_p,
        "repetition_penalty": asked.repetition_penalty,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
        "seed": seed_of(asked.seed, output_index, resumed),
        "logprobs": None if asked.top_logprobs is None else max(1, asked.top_logprobs),
        "logits_processor": _held_back(request, stops),
        "detokenize": False,
        "add_special_tokens": False,
        "return_perf_metrics": False,
    }
    if can.prompt_ignore_length and (asked.presence_penalty or asked.frequency_penalty):
        # What was emitted before is part of the prompt there, and of the output here.
        arguments["prompt_ignore_length"] = len(request.token_ids)
    if asked.logit_bias:
        arguments["embedding_bias"] = library.make_bias(info.vocab_size, asked.logit_bias)
    if request.guide is not None:
        arguments["guided_decoding"] = library.GuidedDecodingParams(**guide_arguments(request.guide.guide))
    return arguments


def _held_back(request: GenerationRequest, stops: Sequence[int]) -> StopsHeldBack | None:
    """The engine's own `min_tokens` holds back the end-of-sequence token only."""
    if not request.min_tokens or not stops:
        return None
    return StopsHeldBack(tuple(stops), len(request.token_ids) + request.min_tokens)
