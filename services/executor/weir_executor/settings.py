"""What the executor is told, by `WEIR_EXECUTOR_…` variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from weir_chassis.settings import ServiceSettings
from weir_executor.mapping import MAX_NAME_BYTES

_MIB, _GIB = 1 << 20, 1 << 30


def _short(name: str) -> str:
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"longer than {MAX_NAME_BYTES} bytes")
    return name


_Name = Annotated[str, AfterValidator(_short)]


def _pairs(value: Any) -> Any:
    """`name=directory,name=directory` → a table."""
    if not isinstance(value, str):
        return value
    pairs = [part.strip().partition("=") for part in value.split(",") if part.strip()]
    if wrong := [name for name, _, directory in pairs if not name or not directory]:
        raise ValueError(f"{wrong[0]!r}: expected name=directory,name=directory")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError("a name is listed twice")
    return {name: directory for name, _, directory in pairs}


_Directories = Annotated[dict[str, str], NoDecode, BeforeValidator(_pairs)]


class TenantSettings(BaseModel):
    """One tenant's share and quotas; see `TenantLimits`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=1.0, gt=0.0, le=1e6, allow_inf_nan=False)
    max_num_seqs: int | None = Field(default=None, ge=1)
    max_blocks: int | None = Field(default=None, ge=1)


class RetentionSettings(BaseModel):
    """How long TensorRT-LLM keeps blocks: priorities of [0, 100], and how long each lasts; none: for good."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_priority: int = Field(default=35, ge=0, le=100)
    prompt_seconds: float | None = Field(default=None, gt=0.0, le=1e6)
    output_priority: int = Field(default=35, ge=0, le=100)
    output_seconds: float | None = Field(default=None, gt=0.0, le=1e6)


class PriceSettings(BaseModel):
    """As `weir.fleet.v1.Price`: for a million tokens, in millionths of one unit of the currency."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_micros: int = Field(ge=0, lt=1 << 63)
    # Unset: no cheaper than the others.
    cached_prompt_micros: int | None = Field(default=None, ge=0, lt=1 << 63)
    completion_micros: int = Field(ge=0, lt=1 << 63)
    currency: str = Field(default="", pattern="^([A-Z]{3})?$", description="ISO 4217")


class ExecutorSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="WEIR_EXECUTOR_", frozen=True, extra="forbid")

    # ── the model ─────────────────────────────────────────────────────────────────────────────────────────────────────
    model_dir: Path = Field(description="a Hugging Face model directory: config.json, tokenizer.json, *.safetensors")
    model: _Name = Field(min_length=1, description="the name clients use")
    revision: _Name = Field(default="", description="empty: the fingerprint of the directory's files")

    # ── the engine ────────────────────────────────────────────────────────────────────────────────────────────────────
    engine: Literal["paged", "trtllm", "openengine", "fake"] = Field(
        default="paged",
        description="ours, or TensorRT-LLM, or a server elsewhere that speaks openengine.v1; fake: tokens by "
        "arithmetic, no weights; for tests",
    )
    device: str = Field(default="cpu", min_length=1, description="cpu, cuda or cuda:<index>")
    tensor_parallel: int = Field(
        default=1, ge=1, le=64, description="processes that share every layer's heads and features"
    )
    pipeline_parallel: int = Field(default=1, ge=1, le=64, description="stages of some layers each")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: as the checkpoint says"
    )
    block_size: int = Field(default=16, ge=1, le=1024, description="tokens per KV block; the tokenizer hashes by it")
    num_blocks: int | None = Field(default=None, ge=1, description="unset: as many as kv_cache_bytes hold")
    kv_cache_bytes: int = Field(default=_GIB, ge=1, description="memory for KV blocks, of all ranks together")
    max_num_seqs: int = Field(default=32, ge=1, le=4096, description="sequences running at once")
    max_batched_tokens: int = Field(
        default=512, ge=1, description="tokens per step: longer prompts are prefilled in chunks"
    )
    max_waiting: int = Field(
        default=256, ge=1, le=100_000, description="requests waiting; more are refused as OVERLOADED"
    )
    max_model_len: int | None = Field(
        default=None, ge=2, description="prompt and generated tokens; unset: the model's own"
    )
    itl_target_ms: float | None = Field(
        default=None,
        gt=0.0,
        le=60_000.0,
        description="inter-token latency to keep to by prefilling in smaller chunks; unset: none",
    )
    speculation: Literal["off", "ngram", "draft_model"] = Field(
        default="off", description="where guesses at next tokens come from, for requests that do not say"
    )
    draft_model_dir: Path | None = Field(
        default=None, description="a smaller model of the same vocabulary, that guesses; unset: none"
    )
    max_draft_tokens: int = Field(default=5, ge=1, le=16, description="guesses per step and output")
    adaptive_drafts: bool = Field(
        default=True, description="as many guesses as pay, none under load; false: always max_draft_tokens"
    )
    prefix_cache: bool = Field(default=True, description="keep full blocks for later prompts that begin alike")
    kv_ttl_seconds: float = Field(
        default=3600.0, gt=0, le=1e9, description="how long blocks are kept that no request uses; 1e9 is for ever"
    )
    num_threads: int | None = Field(default=None, ge=1, le=1024, description="on a CPU; unset: PyTorch's choice")
    weights: Literal["dtype", "int8", "int4"] = Field(
        default="dtype", description="int8, int4: rounded when loaded; on a CPU with native kernels"
    )
    kernels: Literal["auto", "torch", "plain", "avx2", "avx512", "avx512bf16"] = Field(
        default="auto",
        description="on a CPU. auto: native kernels for this processor, else PyTorch; or PyTorch; or one by name",
    )
    tenants: dict[_Name, TenantSettings] = Field(
        default_factory=dict,
        max_length=1024,
        description='JSON: {"acme": {"weight": 4, "max_num_seqs": 8, "max_blocks": 512}, "*": {…}}; '
        "* is each tenant not named, the empty name all who name none",
    )
    weight: float = Field(
        default=1.0, gt=0.0, le=1e6, allow_inf_nan=False, description="its share among equals, where policies weigh"
    )
    price: PriceSettings | None = Field(
        default=None,
        description='JSON, for a million tokens, in millionths: {"prompt_micros": 150000, "completion_micros": 600000, '
        '"currency": "EUR"}',
    )
    # Minutes above the slowest step on a busy CPU; without it, whoever set no deadline would wait for a dead device.
    hang_seconds: float = Field(
        default=300.0, gt=0.0, le=86_400.0, description="a step that takes longer is a hang: the process ends with 1"
    )
    fake_step_seconds: float = Field(
        default=0.0, ge=0.0, le=60.0, description="how long a step of the fake engine takes"
    )

    # ── TensorRT-LLM ──────────────────────────────────────────────────────────────────────────────────────────────────
    trtllm_kv_cache_fraction: float = Field(
        default=0.9, gt=0.0, lt=1.0, description="of the memory that weights and a trial step leave, for KV blocks"
    )
    trtllm_kv_dtype: str = Field(default="auto", min_length=1, description="of KV blocks: auto, fp8, nvfp4")
    trtllm_kv_tier: Literal["engine", "kvstore"] = Field(
        default="engine",
        description="what is behind the engine's own blocks: further tiers of its own, or the kvstore by a connector",
    )
    trtllm_staging_dir: Path = Field(
        default=Path("/dev/shm"),  # noqa: S108  # shared memory, which is what is meant
        description="in memory: where prefixes from the kvstore are put for the engine's processes",
    )
    trtllm_host_cache_bytes: int = Field(default=0, ge=0, description="of the engine's own second tier, per rank")
    trtllm_disk_cache_bytes: int = Field(default=0, ge=0, description="and of its third, where it has one")
    trtllm_disk_cache_dir: Path | None = None
    trtllm_expert_parallel: int | None = Field(default=None, ge=1, le=1024)
    trtllm_gpus_per_node: int | None = Field(default=None, ge=1, le=64)
    trtllm_guided_backend: Literal["xgrammar", "none"] = "xgrammar"
    trtllm_retention: RetentionSettings = Field(
        default=RetentionSettings(),
        description='JSON: {"prompt_priority": 60, "prompt_seconds": 600, "output_priority": 20}: which of the '
        "blocks that others may find go last when the engine needs room; 35 is its own",
    )
    trtllm_adapter_modules: list[str] | None = Field(
        default=None, max_length=64, description="JSON: what adapters may change, by the engine's names"
    )
    trtllm_stream_interval: int = Field(default=1, ge=1, le=64, description="steps between two messages of an output")
    trtllm_speculation: dict[str, Any] | None = Field(
        default=None, description='JSON: {"decoding_type": "MTP", …}, as the engine itself takes it'
    )
    trtllm_cache_transceiver: Literal["none", "DEFAULT", "UCX", "NIXL", "MOONCAKE", "MPI"] | None = Field(
        default=None,
        description="what moves the blocks of prompts between engines; unset: DEFAULT with a role of prefill or decode",
    )
    trtllm_transceiver_runtime: Literal["CPP", "PYTHON"] | None = Field(
        default=None, description="unset: the engine's choice"
    )
    trtllm_transfer_tokens: int | None = Field(
        default=None, ge=1, description="of the longest prompt that is handed over; unset: the context's length"
    )
    trtllm_machine_id: int | None = Field(
        default=None,
        ge=0,
        lt=1021,
        description="different for every executor that hands prompts over; unset: drawn by host and process",
    )
    trtllm_allow_unknown_version: bool = Field(
        default=False, description="try a version of TensorRT-LLM that nobody has looked at"
    )
    trtllm_extra: dict[str, Any] = Field(
        default_factory=dict, max_length=64, description="JSON: further arguments of its LLM; the engine refuses others"
    )

    # ── a server of openengine.v1 ─────────────────────────────────────────────────────────────────────────────────────
    openengine_address: str = Field(default="", max_length=256, description="host:port of the server")
    openengine_model: str = Field(
        default="", max_length=256, description="as the server calls it; empty: as clients do"
    )
    openengine_tls_ca_file: Path | None = Field(
        default=None, description="PEM: who vouches for the server, by TLS; unset: plaintext, for loopback"
    )
    openengine_start_seconds: float = Field(
        default=600.0, gt=0.0, le=86_400.0, description="it may take so long to load its model before it is given up"
    )
    openengine_call_seconds: float = Field(
        default=5.0, gt=0.0, le=300.0, description="for an answer of its control service"
    )
    openengine_stall_seconds: float = Field(
        default=120.0, gt=0.0, le=86_400.0, description="a request of which it says nothing for so long is lost"
    )

    # ── adapters ──────────────────────────────────────────────────────────────────────────────────────────────────────
    adapter_dir: Path | None = Field(default=None, description="below it are all adapters that may be loaded")
    max_adapters: int = Field(default=0, ge=0, le=1024, description="LoRA adapters that fit at once; 0: none")
    max_adapter_rank: int = Field(default=64, ge=1, le=1024, description="of an adapter; larger ones are refused")
    adapters: _Directories = Field(
        default_factory=dict, description="loaded at the start: name=directory,…, directories below adapter_dir"
    )

    # ── the streams ───────────────────────────────────────────────────────────────────────────────────────────────────
    # An entry takes up to 40 bytes, so one stream that is not read holds at most 10 MB.
    stream_buffer_entries: int = Field(
        default=262_144,
        ge=64,
        description="tokens, log-probabilities and other entries kept for a caller that does not read",
    )
    # With 32 requests each hears of its tokens twelve times a second, and of its first one and its end at once.
    stream_deltas_per_second: float = Field(
        default=400.0,
        gt=0.0,
        allow_inf_nan=False,
        description="of all requests on a stream; beyond it, the tokens of several steps come in one delta",
    )
    # About 5 MB, and what a full engine stores and removes in a minute; one that comes back later starts anew.
    kv_event_log: int = Field(
        default=65_536,
        ge=1,
        description="blocks whose events are remembered for a watcher that comes back",
    )

    # ── guides ────────────────────────────────────────────────────────────────────────────────────────────────────────
    guide_seconds: float = Field(default=10.0, gt=0.0, le=600.0, description="a guide may take to compile")
    guide_process_bytes: int = Field(
        default=2 * _GIB, ge=256 * _MIB, description="address space of a process that compiles guides"
    )
    guide_bytes: int = Field(default=64 * _MIB, ge=1024, description="memory of one compiled guide")
    guide_cache_bytes: int = Field(default=256 * _MIB, ge=0, description="memory for compiled guides that are kept")

    # ── the watermark ─────────────────────────────────────────────────────────────────────────────────────────────────
    watermark_key_file: Path | None = Field(
        default=None, description="a file with a secret, the same for all executors of a model; unset: no watermarks"
    )

    # ── prefill and decode apart ──────────────────────────────────────────────────────────────────────────────────────
    role: Literal["prefill", "decode", "both"] = Field(
        default="both", description="prefill: prompts and first tokens for others; decode: what comes after"
    )
    # Far above what a busy router and a busy decode worker take; what is held longer is forgotten.
    handoff_lease_seconds: float = Field(
        default=30.0, ge=0.1, le=600.0, description="a computed prompt is held so long for whoever takes it over"
    )
    handoff_deadline_seconds: float = Field(
        default=2.0, gt=0.0, le=60.0, description="for a computed prompt's blocks; what has not come is computed here"
    )
    handoff_bytes_per_second: float = Field(
        default=200e6, gt=0.0, allow_inf_nan=False, description="extends that deadline by the blocks' size"
    )
    # Two steps of the default size: one to compute, and one so that the next need not be waited for.
    prefill_job_tokens: int = Field(
        default=1024, ge=1, description="still to prefill; with so many, a prefill worker takes no job out of the queue"
    )
    handoff_max_reads: int = Field(default=8, ge=1, le=1024, description="prompts taken over at once")
    handoff_read_bytes: int = Field(
        default=_GIB, ge=1, description="memory for blocks that were taken over and that the engine has not yet"
    )

    # ── the kvstore ───────────────────────────────────────────────────────────────────────────────────────────────────
    kvstore_address: str = Field(default="", description="host:port of the kvstore service; empty: none")
    kvstore_deadline_seconds: float = Field(
        default=0.25, gt=0.0, le=60.0, description="for an answer; what is not there by then is computed"
    )
    kvstore_bytes_per_second: float = Field(
        default=200e6,
        gt=0.0,
        allow_inf_nan=False,
        description="the slowest wire worth waiting for: extends the deadline by the size of what is loaded",
    )
    kvstore_min_blocks: int = Field(
        default=4, ge=1, description="a shorter prefix is computed sooner than it is loaded"
    )
    kvstore_max_loads: int = Field(default=16, ge=1, le=1024, description="loads at once")
    kvstore_load_bytes: int = Field(
        default=_GIB, ge=1, description="memory for prefixes that the engine has not taken yet"
    )
    kvstore_busy_bytes_per_second: float | None = Field(
        default=None,
        gt=0.0,
        allow_inf_nan=False,
        description="of full blocks to the store while requests run; the others follow when none does. Unset: no limit",
    )
    kvstore_queue_bytes: int = Field(
        default=256 * _MIB, ge=1, description="memory for full blocks on their way to the store"
    )

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        if self.max_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_batched_tokens {self.max_batched_tokens} is less than max_num_seqs {self.max_num_seqs}: "
                "every running sequence must be able to take a step"
            )
        if len(self.adapters) > self.max_adapters:
            raise ValueError(f"adapters: {len(self.adapters)}, and max_adapters is {self.max_adapters}")
        if self.engine == "trtllm" and self.trtllm_kv_tier == "kvstore" and not self.kvstore_address:
            raise ValueError("trtllm_kv_tier kvstore needs a kvstore_address")
        if self.speculation == "draft_model" and self.draft_model_dir is None:
            raise ValueError("speculation draft_model needs a draft_model_dir")
        if self.engine == "openengine" and not self.openengine_address:
            raise ValueError("engine openengine needs an openengine_address")
        return self
