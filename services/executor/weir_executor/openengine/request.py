"""One output of a request → `GenerateRequest`. Pure.

Every field that the server would otherwise choose is filled. Each output is a request of its own there, so that it can
be aborted alone, resumed alone, and drawn greedily beside its siblings; the server's prefix cache computes their prompt
once. Tokens that were emitted before are part of the prompt there, so penalties count them as such.
"""

from __future__ import annotations

from weir.openengine.v1 import openengine_pb2 as pb
from weir_chassis.errors import Unsupported
from weir_executor.foreign.salts import shared_salt, shares_blocks
from weir_executor.foreign.seeds import seed_of
from weir_executor.guided.guide import ANY_OBJECT, Guide, GuideKind
from weir_executor.openengine.capabilities import Capabilities
from weir_executor.openengine.config import OpenEngineConfig
from weir_executor.request import GenerationRequest


def check_supported(request: GenerationRequest, can: Capabilities, config: OpenEngineConfig) -> None:
    """Raises Unsupported, naming the field, for what the contract has no word for or this server cannot do."""
    sampling = request.sampling
    if sampling.watermark is not None:
        raise Unsupported("sampling.watermark: openengine.v1 has none")
    if sampling.logit_bias:
        raise Unsupported("sampling.logit_bias: openengine.v1 has none")
    if sampling.top_logprobs is not None and not can.logprobs:
        raise Unsupported("sampling.logprobs: the server does not say that it has them")
    if request.min_tokens and request.stop_token_ids:
        raise Unsupported("stopping.min_tokens: openengine.v1 holds back no stop_token_ids")
    if request.guide is not None:
        _check_guide(request, request.guide.guide, can)
    if not can.cache_salt and request.cache_scope not in (b"", config.plain_scope):
        raise Unsupported("tenant_salt: the server does not say that it keeps caches apart")


def _check_guide(request: GenerationRequest, guide: Guide, can: Capabilities) -> None:
    """Servers begin a guide anew where an output is resumed, and end it by the token that ends a sequence."""
    if guide.kind not in can.guides:
        raise Unsupported(f"{guide.field}: the server does not say that it follows such guides")
    if any(request.resumed.values()):
        raise Unsupported(f"{guide.field}: a guide cannot be resumed by openengine.v1")
    if request.min_tokens:
        raise Unsupported(f"stopping.min_tokens with {guide.field}: openengine.v1 cannot hold back a guide's end")
    if request.ignore_eos:
        raise Unsupported(f"stopping.ignore_eos with {guide.field}: servers end a guide by that token")


def to_message(
    request: GenerationRequest,
    output_index: int,
    request_id: str,
    can: Capabilities,
    config: OpenEngineConfig,
    *,
    private_salt: str,
) -> pb.GenerateRequest:
    """`request` has passed `check_supported`. `private_salt`: nobody else's, for what shares no blocks."""
    resumed = request.resumed.get(output_index, ())
    message = pb.GenerateRequest(
        request_id=request_id,
        model=config.model,
        token_ids=pb.TokenIds(ids=[*request.token_ids, *resumed]),
        sampling=_sampling(request, output_index, len(resumed), config),
        stopping=_stopping(request, len(resumed), can),
        lora_name=request.adapter,
    )
    if request.sampling.top_logprobs is not None:
        message.response.return_output_logprobs = True
        message.response.output_candidates.top_n = request.sampling.top_logprobs
    if request.guide is not None:
        message.guided.CopyFrom(_guided(request.guide.guide))
    if can.cache_salt:
        shares = shares_blocks(request, can.block_size or config.block_size)
        message.kv.cache_salt = shared_salt(request.cache_scope) if shares else private_salt
    elif can.cache_bypass and not shares_blocks(request, can.block_size or config.block_size):
        message.kv.bypass_prefix_cache = True
    # A hint that TensorRT-LLM takes: nobody reads its text.
    message.extra.fields["detokenize"].bool_value = False
    return message


def metadata(request: GenerationRequest, can: Capabilities) -> tuple[tuple[str, str], ...]:
    """A server that does not support a priority refuses who names one."""
    return (("openengine-priority", str(request.priority)),) if can.priority and request.priority else ()


def _sampling(
    request: GenerationRequest, output_index: int, resumed: int, config: OpenEngineConfig
) -> pb.SamplingParams:
    asked = request.sampling
    greedy = not asked.temperature
    return pb.SamplingParams(
        temperature=asked.temperature,
        # Beyond the vocabulary it keeps every token, and need not fit an int32.
        top_k=1 if greedy else asked.top_k if asked.top_k < config.vocab_size else 0,
        top_p=1.0 if greedy else asked.top_p,
        min_p=0.0 if greedy else asked.min_p,
        repetition_penalty=asked.repetition_penalty,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        seed=seed_of(asked.seed, output_index, resumed),
        num_sequences=1,
    )


def _stopping(request: GenerationRequest, resumed: int, can: Capabilities) -> pb.StoppingOptions:
    left = request.max_tokens - resumed
    stopping = pb.StoppingOptions(
        max_tokens=left if can.max_output is None else min(left, can.max_output),
        conditions=[pb.StopCondition(stop_token_id=each) for each in sorted(request.stop_token_ids)],
        ignore_eos=request.ignore_eos,
    )
    if (least := request.min_tokens - resumed) > 0:
        stopping.min_tokens = least
    if can.stop_in_output:
        stopping.include_stop_in_output = True
    return stopping


def _guided(guide: Guide) -> pb.GuidedDecoding:
    match guide.kind:
        case GuideKind.JSON_SCHEMA:
            return pb.GuidedDecoding(json_schema=guide.text)
        case GuideKind.JSON_OBJECT:  # TensorRT-LLM takes lists and numbers for one, too
            return pb.GuidedDecoding(json_schema=ANY_OBJECT)
        case GuideKind.REGEX:
            return pb.GuidedDecoding(regex=guide.text)
        case GuideKind.STRUCTURAL_TAG:
            return pb.GuidedDecoding(structural_tag=guide.text)
        case GuideKind.EBNF | GuideKind.CHOICE:
            return pb.GuidedDecoding(ebnf_grammar=guide.text)
