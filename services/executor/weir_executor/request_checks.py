"""What a request must satisfy on any engine: whatever could never run there is refused at once, by name."""

from __future__ import annotations

from collections.abc import Iterable

from weir_chassis.errors import InvalidArgument, PromptTooLong, Unsupported
from weir_executor.engine import EngineInfo
from weir_executor.request import GenerationRequest, SpeculationMode


def check_request(request: GenerationRequest, info: EngineInfo) -> None:
    """Raise what is wrong with the request for this engine."""
    if request.pooling is not None:
        _check_pooling(request, info)
    _check_counts(request, info)
    _check_length(request, info)
    _check_token_ids("token_ids", request.token_ids, info)
    _check_token_ids("stop_token_ids", request.stop_token_ids, info)
    _check_token_ids("sampling.logit_bias", request.sampling.logit_bias, info)
    _check_resumed(request, info)
    _check_speculation(request, info)
    if request.hand_off and not info.hands_off:
        raise Unsupported("hand_off: this engine's blocks are for itself only")
    full_blocks = len(request.token_ids) // info.block_size
    if request.block_hashes and len(request.block_hashes) != full_blocks:
        found = f"{len(request.block_hashes)} hashes"
        raise InvalidArgument("block_hashes", f"{found} for {full_blocks} full blocks of {info.block_size} tokens")


def _check_counts(request: GenerationRequest, info: EngineInfo) -> None:
    if not request.token_ids:
        raise InvalidArgument("token_ids", "a prompt has at least one token")
    if not 1 <= request.n <= info.max_n:
        raise InvalidArgument("n", f"{request.n} is not between 1 and {info.max_n}")
    if request.max_tokens < 1 and request.pooling is None:
        raise InvalidArgument("max_tokens", f"{request.max_tokens} is less than 1")
    if not 0 <= request.min_tokens <= request.max_tokens:
        raise InvalidArgument(
            "min_tokens", f"{request.min_tokens} is not between 0 and max_tokens {request.max_tokens}"
        )
    if (request.sampling.top_logprobs or 0) > info.max_top_logprobs:
        raise InvalidArgument("sampling.top_logprobs", f"the limit is {info.max_top_logprobs}")


def _check_pooling(request: GenerationRequest, info: EngineInfo) -> None:
    if not info.embedding_size:
        raise Unsupported("pooling: this engine makes no embeddings")
    if (request.n, request.max_tokens) != (1, 0) or request.resumed:
        raise InvalidArgument("pooling", "a request that pools has one output and generates nothing")


def _check_length(request: GenerationRequest, info: EngineInfo) -> None:
    wanted = len(request.token_ids) + request.max_tokens
    if wanted > info.max_model_len:
        raise PromptTooLong("token_ids", wanted, info.max_model_len)


def _check_speculation(request: GenerationRequest, info: EngineInfo) -> None:
    known = (SpeculationMode.OFF, *info.speculation_modes)
    if request.speculation is not None and request.speculation not in known:
        modes = ", ".join(mode.value for mode in known)
        raise Unsupported(f"speculation: {request.speculation.value} is not among {modes}")
    drafts = request.max_draft_tokens
    if drafts is not None and not 1 <= drafts <= info.max_draft_tokens:
        raise InvalidArgument("max_draft_tokens", f"{drafts} is not between 1 and {info.max_draft_tokens}")


def _check_resumed(request: GenerationRequest, info: EngineInfo) -> None:
    for output_index, token_ids in request.resumed.items():
        if not 0 <= output_index < request.n:
            raise InvalidArgument("resumed", f"output {output_index} of {request.n}")
        if len(token_ids) > request.max_tokens:
            raise InvalidArgument("resumed", f"{len(token_ids)} tokens, max_tokens is {request.max_tokens}")
        _check_token_ids("resumed", token_ids, info)


def _check_token_ids(field: str, token_ids: Iterable[int], info: EngineInfo) -> None:
    lowest, highest = min(token_ids, default=0), max(token_ids, default=0)
    if lowest < 0 or highest >= info.vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise InvalidArgument(field, f"token id {wrong} is outside the vocabulary of {info.vocab_size}")
