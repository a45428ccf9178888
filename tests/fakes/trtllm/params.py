"""Classes of `tensorrt_llm` that hold parameters, with the fields and defaults that are published for 1.2.1."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar


@dataclass(kw_only=True)
class GuidedDecodingParams:
    json: Any = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False
    structural_tag: str | None = None


@dataclass(kw_only=True)
class SamplingParams:
    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int | None = 32
    bad: Any = None
    bad_token_ids: list[int] | None = None
    stop: Any = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    embedding_bias: Any = None
    logits_processor: Any = None
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    prompt_ignore_length: int | None = None
    min_p: float | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    return_context_logits: bool = False
    return_generation_logits: bool = False
    exclude_input_from_output: bool = True
    return_perf_metrics: bool = False
    guided_decoding: GuidedDecodingParams | None = None
    ignore_eos: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    # It is written to when it is used: one object for two requests is a mistake.
    used: bool = field(default=False, init=False)

    @property
    def is_greedy(self) -> bool:
        """All unset is greedy, and so is the best token alone."""
        unset = self.temperature is None and self.top_k is None and self.top_p is None
        return unset or self.top_k == 1 or self.top_p == 0.0 or self.temperature == 0.0


@dataclass(kw_only=True)
class KvCacheConfig:
    enable_block_reuse: bool = True
    max_tokens: int | None = None
    max_attention_window: list[int] | None = None
    sink_token_length: int | None = None
    free_gpu_memory_fraction: float | None = 0.9
    host_cache_size: int | None = None
    cross_kv_cache_fraction: float | None = None
    secondary_offload_min_priority: int | None = None
    event_buffer_max_size: int = 0
    attention_dp_events_gather_period_ms: int = 5
    enable_partial_reuse: bool = True
    copy_on_partial_reuse: bool = True
    use_uvm: bool = False
    dtype: str = "auto"
    tokens_per_block: int = 32


@dataclass(kw_only=True)
class SchedulerConfig:
    capacity_scheduler_policy: str = "GUARANTEED_NO_EVICT"
    context_chunking_policy: str | None = None
    dynamic_batch_config: Any = None


@dataclass(kw_only=True)
class CudaGraphConfig:
    batch_sizes: list[int] | None = None
    max_batch_size: int = 0
    enable_padding: bool = False


@dataclass(kw_only=True)
class LoraConfig:
    lora_dir: list[str] = field(default_factory=list)
    lora_ckpt_source: str = "hf"
    max_lora_rank: int = 64
    max_loras: int | None = None
    max_cpu_loras: int | None = None
    lora_target_modules: list[str] = field(default_factory=list)


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    lora_ckpt_source: str = "hf"


@dataclass(kw_only=True)
class DisaggregatedParams:
    request_type: str | None = None
    first_gen_tokens: list[int] | None = None
    first_gen_log_probs: list[Any] | None = None
    ctx_request_id: int | None = None
    opaque_state: bytes | None = None
    draft_tokens: list[int] | None = None


@dataclass(kw_only=True)
class NumberedDisaggregatedParams(DisaggregatedParams):
    """As of 1.3: prompts that are handed over have a number that all engines agree on."""

    disagg_request_id: int | None = None


@dataclass(kw_only=True)
class CacheTransceiverConfig:
    backend: str | None = None
    max_tokens_in_buffer: int | None = None
    kv_transfer_timeout_ms: int | None = None


@dataclass
class _TokenRange:
    token_start: int
    token_end: int | None = None
    priority: int = 35
    duration_ms: timedelta | None = None


@dataclass
class KvCacheRetentionConfig:
    """Of C++: no signature tells its parameters."""

    TokenRangeRetentionConfig: ClassVar[type[_TokenRange]] = _TokenRange

    token_range_retention_configs: list[_TokenRange]
    decode_retention_priority: int = 35
    decode_duration_ms: timedelta | None = None

    def __post_init__(self) -> None:
        told = [self.decode_retention_priority, *(each.priority for each in self.token_range_retention_configs)]
        if not all(0 <= priority <= 100 for priority in told):
            raise ValueError("Invalid priority level")


class DecodingBaseConfig:
    """Of speculation. Older versions take no dict in its place, and this reads one."""

    def __init__(self, decoding_type: str, max_draft_len: int) -> None:
        self.decoding_type, self.max_draft_len = decoding_type, max_draft_len

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DecodingBaseConfig:
        if data.get("decoding_type") not in ("MTP", "Eagle3", "NGram", "Draft_Target"):
            raise ValueError(f"Invalid decoding type: {data.get('decoding_type')}")
        return cls(data["decoding_type"], data.get("max_draft_len", 1))


@dataclass(kw_only=True)
class KvCacheConnectorConfig:
    connector_module: str
    connector_scheduler_class: str
    connector_worker_class: str
