"""What a request must be before anything is spent on it. Pure: each check names the field and its limit.

The limits are those that sampling.proto, chat.proto and router.proto state. What only a worker knows (a text's bytes, a
vocabulary's size, the context's length) is checked where it is known.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized

from google.protobuf.duration_pb2 import Duration

from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt
from weir.inference.v1.embedding_pb2 import Pooling
from weir.inference.v1.guide_pb2 import Guide
from weir.inference.v1.routing_pb2 import Constraints, ContinuationMode, RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.inference.v1.speculation_pb2 import Speculation, SpeculationMode
from weir.inference.v1.watermark_pb2 import Watermark
from weir.router.v1.router_pb2 import (
    CancelRequestRequest,
    ChatRequest,
    DetectWatermarkRequest,
    EmbedInput,
    EmbedRequest,
    GenerateRequest,
    ResumeRequest,
)
from weir_chassis.durations import seconds_of
from weir_chassis.errors import InvalidArgument, Unsupported
from weir_chassis.limits import MAX_REQUEST_ID_BYTES

MAX_MODEL_BYTES = 128
MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_ROLE_BYTES = 64
MAX_N = 16
MAX_LOGPROBS = 20
MAX_DRAFT_TOKENS = 16
MAX_LOGIT_BIASES = 1024
MAX_STOPS = 16
MAX_STOP_BYTES = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_PRIORITY = 100
MAX_GUIDE_BYTES = {"json_schema": 64 << 10, "regex": 8 << 10, "ebnf": 64 << 10, "structural_tag": 64 << 10}
MAX_OPTIONS = 256
MAX_OPTION_BYTES = 1024
MAX_ADAPTER_BYTES = 128
MAX_EMBED_INPUTS = 256
MAX_SESSION_BYTES = 128
MAX_IDEMPOTENCY_KEY_BYTES = 128
MAX_REGIONS = 16
MAX_REGION_BYTES = 64

# Made once: asked for, they are a new list each time.
_POOLINGS = frozenset(Pooling.values())
_SPECULATION_MODES = frozenset(SpeculationMode.values())
_CONTINUATION_MODES = frozenset(ContinuationMode.values())

# Field: lowest, highest, whether the lowest itself is allowed.
_FLOAT_RANGES: dict[str, tuple[float, float, bool]] = {
    "temperature": (0, 100, True),
    "top_p": (0, 1, False),
    "min_p": (0, 1, True),
    "repetition_penalty": (0, 100, False),
    "presence_penalty": (-100, 100, True),
    "frequency_penalty": (-100, 100, True),
}


def check_generate(request: GenerateRequest) -> None:
    """Raises InvalidArgument for the first field that is wrong."""
    _check_common(request)
    match request.WhichOneof("prompt"):
        case "text":
            _require(bool(request.text), "text", "must not be empty")
        case "token_ids":
            _require(bool(request.token_ids.token_ids), "token_ids.token_ids", "must not be empty")
        case _:
            raise InvalidArgument("prompt", "is required: `text` or `token_ids`")


def check_chat(request: ChatRequest) -> None:
    """Raises InvalidArgument for the first field that is wrong, Unsupported for an image part."""
    _check_common(request)
    check_chat_prompt(request.prompt)


def check_embed(request: EmbedRequest) -> None:
    """Raises InvalidArgument for the first field that is wrong."""
    _check_bytes("model", request.model, MAX_MODEL_BYTES)
    _check_bytes("adapter", request.adapter, MAX_ADAPTER_BYTES)
    _check_int("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY)
    if request.pooling not in _POOLINGS:
        raise InvalidArgument("pooling", f"{request.pooling} is none that the contract knows")
    _check_count("inputs", request.inputs, MAX_EMBED_INPUTS, least=1)
    for index, one in enumerate(request.inputs):
        _check_embed_input(f"inputs[{index}]", one)


def check_detect_watermark(request: DetectWatermarkRequest) -> None:
    """Raises InvalidArgument for the first field that is wrong."""
    _check_bytes("model", request.model, MAX_MODEL_BYTES)
    _require(bool(request.text), "text", "must not be empty")
    check_watermark("watermark", request.watermark)


def check_resume(request: ResumeRequest) -> None:
    """Raises InvalidArgument for the first field that is wrong."""
    _check_bytes("request_id", request.request_id, MAX_REQUEST_ID_BYTES, least=1)
    _check_count("next", request.next, MAX_N)
    outputs = [each.output_index for each in request.next]
    _require(len(set(outputs)) == len(outputs), "next", "names an output twice")


def check_cancel_request(request: CancelRequestRequest) -> None:
    """Raises InvalidArgument."""
    _check_bytes("request_id", request.request_id, MAX_REQUEST_ID_BYTES, least=1)


def check_chat_prompt(prompt: ChatPrompt) -> None:
    _check_count("prompt.messages", prompt.messages, MAX_MESSAGES, least=1)
    for index, message in enumerate(prompt.messages):
        _check_message(f"prompt.messages[{index}]", message)


def check_sampling(sampling: SamplingParameters) -> None:
    for name, (low, high, inclusive) in _FLOAT_RANGES.items():
        if sampling.HasField(name):  # type: ignore[arg-type]  # the names are the keys of the table above
            _check_float(f"sampling.{name}", getattr(sampling, name), low, high, inclusive=inclusive)
    if sampling.HasField("n"):
        _check_int("sampling.n", sampling.n, 1, MAX_N)
    if sampling.HasField("logprobs"):
        _check_int("sampling.logprobs", sampling.logprobs, 0, MAX_LOGPROBS)
    _check_logit_bias(sampling)
    if sampling.HasField("guide"):
        check_guide(sampling.guide)
    if sampling.HasField("watermark"):
        check_watermark("sampling.watermark", sampling.watermark)
    if sampling.HasField("speculation"):
        _check_speculation(sampling.speculation)


def check_one_output(sampling: SamplingParameters) -> None:
    """For what has one answer."""
    if sampling.HasField("n") and sampling.n != 1:
        raise InvalidArgument("sampling.n", f"must be 1 or unset, is {sampling.n}")


def check_guide(guide: Guide) -> None:
    language = guide.WhichOneof("language")
    _require(language is not None, "sampling.guide", "names no language; one of json_schema, json_object, regex, …")
    if language == "choice":
        _check_count("sampling.guide.choice.options", guide.choice.options, MAX_OPTIONS, least=1)
        for index, option in enumerate(guide.choice.options):
            _check_bytes(f"sampling.guide.choice.options[{index}]", option, MAX_OPTION_BYTES, least=1)
    elif language in MAX_GUIDE_BYTES:
        _check_bytes(f"sampling.guide.{language}", getattr(guide, language), MAX_GUIDE_BYTES[language], least=1)


def check_watermark(field: str, watermark: Watermark) -> None:
    if watermark.HasField("green_fraction"):
        _check_float(f"{field}.green_fraction", watermark.green_fraction, 0.05, 0.95)
    if watermark.HasField("bias"):
        _check_float(f"{field}.bias", watermark.bias, 0, 20, inclusive=False)


def _check_speculation(speculation: Speculation) -> None:
    if speculation.mode not in _SPECULATION_MODES:
        raise InvalidArgument("sampling.speculation.mode", f"{speculation.mode} is unknown")
    if speculation.HasField("max_draft_tokens"):
        _check_int("sampling.speculation.max_draft_tokens", speculation.max_draft_tokens, 1, MAX_DRAFT_TOKENS)


def check_stopping(stopping: StoppingConditions) -> None:
    if stopping.HasField("max_tokens"):
        least, most = stopping.min_tokens, stopping.max_tokens
        if most < 1:
            raise InvalidArgument("stopping.max_tokens", f"must be at least 1, is {most}")
        if least > most:
            raise InvalidArgument("stopping.min_tokens", f"must be at most max_tokens ({most}), is {least}")
    _check_count("stopping.stop", stopping.stop, MAX_STOPS)
    for index, stop in enumerate(stopping.stop):
        _check_bytes(f"stopping.stop[{index}]", stop, MAX_STOP_BYTES, least=1)
    _check_count("stopping.stop_token_ids", stopping.stop_token_ids, MAX_STOP_TOKEN_IDS)


def check_routing(routing: RoutingOptions) -> None:
    _check_bytes("routing.session", routing.session, MAX_SESSION_BYTES)
    _check_bytes("routing.idempotency_key", routing.idempotency_key, MAX_IDEMPOTENCY_KEY_BYTES)
    if routing.continuation not in _CONTINUATION_MODES:
        raise InvalidArgument("routing.continuation", f"{routing.continuation} is unknown")
    if routing.HasField("retain"):
        _check_duration("routing.retain", routing.retain)
    if routing.HasField("hedge_after"):
        _check_duration("routing.hedge_after", routing.hedge_after, may_be_zero=True)
    if routing.HasField("constraints"):
        _check_constraints("routing.constraints", routing.constraints)


def _check_constraints(path: str, constraints: Constraints) -> None:
    if constraints.HasField("max_ttft"):
        _check_duration(f"{path}.max_ttft", constraints.max_ttft)
    if constraints.HasField("min_quality"):
        _check_float(f"{path}.min_quality", constraints.min_quality, 0, 1)
    _check_count(f"{path}.regions", constraints.regions, MAX_REGIONS)
    for index, region in enumerate(constraints.regions):
        _check_bytes(f"{path}.regions[{index}]", region, MAX_REGION_BYTES, least=1)


def check_vocabulary(token_ids: Sequence[int], vocab_size: int, field: str = "token_ids.token_ids") -> None:
    """For a prompt of ids, once it is known whose vocabulary they are to be from."""
    if max(token_ids) < vocab_size:  # one pass in C for the prompt that is right
        return
    index = next(index for index, token_id in enumerate(token_ids) if token_id >= vocab_size)
    limit = f"must be below the vocabulary's size {vocab_size}, is {token_ids[index]}"
    raise InvalidArgument(f"{field}[{index}]", limit)


def _check_common(request: GenerateRequest | ChatRequest) -> None:
    _check_bytes("model", request.model, MAX_MODEL_BYTES)
    _check_bytes("adapter", request.adapter, MAX_ADAPTER_BYTES)
    _check_int("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY)
    # What is not set is as it should be, and costs nothing.
    if request.HasField("sampling"):
        check_sampling(request.sampling)
    if request.HasField("stopping"):
        check_stopping(request.stopping)
    if request.HasField("routing"):
        check_routing(request.routing)


def _check_embed_input(path: str, one: EmbedInput) -> None:
    match one.WhichOneof("input"):
        case "text":
            _require(bool(one.text), f"{path}.text", "must not be empty")
        case "token_ids":
            _require(bool(one.token_ids.token_ids), f"{path}.token_ids.token_ids", "must not be empty")
        case _:
            raise InvalidArgument(path, "is required: `text` or `token_ids`")


def _check_message(path: str, message: ChatMessage) -> None:
    _check_bytes(f"{path}.role", message.role, MAX_ROLE_BYTES, least=1)
    _check_count(f"{path}.content", message.content, MAX_PARTS)
    for index, part in enumerate(message.content):
        kind = part.WhichOneof("part")
        if kind == "image":
            raise Unsupported(f"{path}.content[{index}].image: no model here takes images")
        if kind is None:
            raise InvalidArgument(f"{path}.content[{index}]", "is required: `text`")


def _check_logit_bias(sampling: SamplingParameters) -> None:
    _check_count("sampling.logit_bias", sampling.logit_bias, MAX_LOGIT_BIASES)
    for token_id, bias in sampling.logit_bias.items():
        _check_float(f"sampling.logit_bias[{token_id}]", bias, -100, 100)


# Every request is checked, and most are right: what is wrong is put into words only when something is.


def _check_float(field: str, value: float, low: float, high: float, *, inclusive: bool = True) -> None:
    # Written so that NaN, for which every comparison is false, is refused.
    if not (low <= value <= high if inclusive else low < value <= high):
        opening = "[" if inclusive else "("
        raise InvalidArgument(field, f"must be in {opening}{low:g}, {high:g}], is {value:g}")


def _check_int(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidArgument(field, f"must be in [{low}, {high}], is {value}")


def _check_duration(field: str, value: Duration, *, may_be_zero: bool = False) -> None:
    seconds = seconds_of(value)
    if seconds < 0 or (seconds == 0 and not may_be_zero):
        least = "0 s or more" if may_be_zero else "more than 0 s"
        raise InvalidArgument(field, f"must be {least}, is {seconds:g} s")


def _check_bytes(field: str, value: str, most: int, *, least: int = 0) -> None:
    size = len(value.encode())
    if not least <= size <= most:
        raise InvalidArgument(field, f"must be {least} to {most} bytes of UTF-8, has {size}")


def _check_count(field: str, values: Sized, most: int, *, least: int = 0) -> None:
    count = len(values)
    if not least <= count <= most:
        raise InvalidArgument(field, f"must have {least} to {most} entries, has {count}")


def _require(valid: bool, field: str, description: str) -> None:
    if not valid:
        raise InvalidArgument(field, description)
