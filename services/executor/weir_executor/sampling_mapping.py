"""`SamplingParameters` → what the engine samples by, within the limits of the contract and of the engine. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir.inference.v1.speculation_pb2 import SpeculationMode as ProtoSpeculationMode
from weir_chassis.errors import InvalidArgument, Unsupported
from weir_executor.engine import EngineInfo
from weir_executor.ranges import Range, check_vocabulary
from weir_executor.request import Sampling, SpeculationMode, Watermark

MAX_N, MAX_LOGPROBS, MAX_LOGIT_BIAS = 16, 20, 1024

_RANGES: Mapping[str, Range] = {
    "temperature": Range(0, 100),
    "top_p": Range(0, 1, low_is_open=True),
    "min_p": Range(0, 1),
    "repetition_penalty": Range(0, 100, low_is_open=True),
    "presence_penalty": Range(-100, 100),
    "frequency_penalty": Range(-100, 100),
}
_BIAS = Range(-100, 100)
SPECULATION_MODES: Mapping[ProtoSpeculationMode.ValueType, SpeculationMode | None] = {
    ProtoSpeculationMode.SPECULATION_MODE_UNSPECIFIED: None,
    ProtoSpeculationMode.SPECULATION_MODE_OFF: SpeculationMode.OFF,
    ProtoSpeculationMode.SPECULATION_MODE_NGRAM: SpeculationMode.NGRAM,
    ProtoSpeculationMode.SPECULATION_MODE_DRAFT_MODEL: SpeculationMode.DRAFT_MODEL,
}


def check_sampling_value(name: str, value: float, field: str = "") -> None:
    """Raises InvalidArgument when a parameter such as `top_p` is out of its range."""
    _RANGES[name].check(field or name, value)


def to_sampling(
    asked: SamplingParameters,
    default: Sampling,
    info: EngineInfo,
    watermark: Watermark | None,
    draw_seed: Callable[[], int],
) -> Sampling:
    """What is unset is as in `default`; a seed is drawn. Raises InvalidArgument."""
    for name in _RANGES:
        if asked.HasField(name):  # type: ignore[arg-type]  # a name out of our own table
            check_sampling_value(name, getattr(asked, name), f"sampling.{name}")
    return Sampling(
        temperature=asked.temperature if asked.HasField("temperature") else default.temperature,
        top_k=asked.top_k if asked.HasField("top_k") else default.top_k,
        top_p=asked.top_p if asked.HasField("top_p") else default.top_p,
        min_p=asked.min_p if asked.HasField("min_p") else default.min_p,
        repetition_penalty=(
            asked.repetition_penalty if asked.HasField("repetition_penalty") else default.repetition_penalty
        ),
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        logit_bias=_logit_bias(asked, info),
        seed=asked.seed if asked.HasField("seed") else draw_seed(),
        top_logprobs=_top_logprobs(asked, info),
        watermark=watermark,
    )


def to_n(sampling: SamplingParameters, info: EngineInfo) -> int:
    limit, n = min(MAX_N, info.max_n), sampling.n if sampling.HasField("n") else 1
    if not 1 <= n <= limit:
        raise InvalidArgument("sampling.n", f"{n} is outside [1, {limit}]")
    return n


def to_speculation_mode(sampling: SamplingParameters, info: EngineInfo) -> SpeculationMode | None:
    asked = sampling.speculation.mode
    if asked not in SPECULATION_MODES:
        raise InvalidArgument("sampling.speculation.mode", f"{asked} is none of those that the contract knows")
    mode = SPECULATION_MODES[asked]
    if mode is not None and mode not in (SpeculationMode.OFF, *info.speculation_modes):
        raise Unsupported(f"sampling.speculation.mode: this executor does not speculate by {mode.value}")
    return mode


def to_max_draft_tokens(sampling: SamplingParameters, info: EngineInfo) -> int | None:
    if not sampling.speculation.HasField("max_draft_tokens"):
        return None
    limit, asked = max(1, info.max_draft_tokens), sampling.speculation.max_draft_tokens
    if not 1 <= asked <= limit:
        raise InvalidArgument("sampling.speculation.max_draft_tokens", f"{asked} is outside [1, {limit}]")
    return asked


def _logit_bias(asked: SamplingParameters, info: EngineInfo) -> Mapping[int, float]:
    if len(asked.logit_bias) > MAX_LOGIT_BIAS:
        raise InvalidArgument("sampling.logit_bias", f"{len(asked.logit_bias)} entries; at most {MAX_LOGIT_BIAS}")
    check_vocabulary("sampling.logit_bias", asked.logit_bias.keys(), info)
    for token_id, bias in asked.logit_bias.items():
        _BIAS.check(f"sampling.logit_bias[{token_id}]", bias)
    return dict(asked.logit_bias)


def _top_logprobs(asked: SamplingParameters, info: EngineInfo) -> int | None:
    if not asked.HasField("logprobs"):
        return None
    if asked.logprobs > (limit := min(MAX_LOGPROBS, info.max_top_logprobs)):
        raise InvalidArgument("sampling.logprobs", f"{asked.logprobs}; at most {limit}")
    return asked.logprobs
