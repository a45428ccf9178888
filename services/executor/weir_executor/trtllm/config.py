"""What the engine is told, and the keyword arguments that this becomes. Pure.

Nothing is left to TensorRT-LLM's own defaults that means something here: some are far beyond what a server wants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from weir_chassis.errors import Unsupported
from weir_executor.trtllm.connector.check import check_arguments
from weir_executor.trtllm.connector.told import MODULE, SCHEDULER, WORKER
from weir_executor.trtllm.library import Library
from weir_executor.trtllm.probe import Capabilities
from weir_executor.trtllm.retention import Retention

# Events are dropped in silence when there are more between two looks; what NVIDIA's own server asks for.
_EVENT_BUFFER = 100_000
# Guides are compiled for admission by xgrammar, so that the engine must follow them by it too: its other backend,
# llguidance, takes grammars in another language and no tags, and a guide that it cannot compile ends the engine.
GuidedBackend = Literal["xgrammar"]
# By the engine's names, what an adapter of a dense model may change: q, k, v, o, gate, down, up.
ADAPTER_MODULES: Final = ("attn_q", "attn_k", "attn_v", "attn_dense", "mlp_h_to_4h", "mlp_4h_to_h", "mlp_gate")
TransceiverBackend = Literal["DEFAULT", "UCX", "NIXL", "MOONCAKE", "MPI"]


@dataclass(frozen=True, slots=True)
class Transceiver:
    """How blocks of prompts go from one engine to another, and what this one is there for."""

    backend: TransceiverBackend = "DEFAULT"
    runtime: Literal["CPP", "PYTHON"] | None = None  # None: the engine's choice
    max_tokens: int | None = None  # of a prompt that is transferred; None: the longest
    hands_off: bool = True  # prompts, to others
    takes_over: bool = True  # from others
    # How long a computed prompt's blocks wait to be fetched, and an engine for those that it fetches.
    timeout_seconds: float = 30.0
    # What fetching may take before the prompt is computed after all: so long, and its bytes by this in addition.
    deadline_seconds: float = 2.0
    bytes_per_second: float = 200e6
    bytes_per_token: int = 0  # of all layers' keys and values
    machine_id: int = 0  # [0, 1021): different for every process that hands off


@dataclass(frozen=True, slots=True)
class ConnectorConfig:
    """To our kvstore, instead of the engine's own tiers."""

    kvstore_address: str
    staging_dir: Path  # in memory, which the service shares with the engine's processes
    staging_bytes: int
    queue_bytes: int  # of each rank's blocks on their way to the store
    bytes_per_second: float  # the slowest wire worth waiting for


@dataclass(frozen=True, slots=True)
class TrtConfig:
    """Blocks go to the engine's own further tiers, or to our kvstore by a connector; never to both."""

    model_dir: Path
    max_num_seqs: int = 64
    max_batched_tokens: int = 8192
    max_waiting: int = 256
    max_model_len: int | None = None  # None: as the model's configuration says
    block_size: int = 32
    kv_cache_fraction: float = 0.9  # of the memory that is left after weights and a trial step
    kv_cache_max_tokens: int | None = None  # and no more than these
    kv_dtype: str = "auto"
    dtype: str = "auto"
    prefix_cache: bool = True
    host_cache_bytes: int = 0  # the engine's own second tier, per rank
    disk_cache_bytes: int = 0
    disk_cache_dir: Path | None = None
    connector: ConnectorConfig | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int | None = None
    gpus_per_node: int | None = None
    guided_backend: GuidedBackend | None = "xgrammar"
    max_adapters: int = 0
    max_adapter_rank: int = 64
    adapter_modules: tuple[str, ...] = ADAPTER_MODULES
    speculation: Mapping[str, Any] | None = None  # `decoding_type` and its own fields, handed on as they are
    retention: Retention = field(default_factory=Retention)
    stream_interval: int = 1
    transceiver: Transceiver | None = None  # None: prompts are computed where they are decoded
    allow_unknown_version: bool = False
    # Of `TorchLlmArgs`, for what this backend does not know of; an unknown one is refused by the engine itself.
    extra: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises Unsupported for what cannot be together, naming both."""
        own_tiers = bool(self.host_cache_bytes or self.disk_cache_bytes)
        if self.connector and own_tiers:
            raise Unsupported("the engine's own host and disk tiers and a connector to the kvstore exclude one another")
        if self.disk_cache_bytes and self.disk_cache_dir is None:
            raise Unsupported("disk_cache_bytes without a disk_cache_dir")

    @property
    def transfer_seconds(self) -> float:
        """After that the engine gives a transfer up by itself."""
        return 0.0 if self.transceiver is None else self.transceiver.timeout_seconds

    def fetch_seconds(self, prompt_tokens: int) -> float:
        """After that a prompt whose blocks are on the way is computed after all."""
        how = self.transceiver
        assert how is not None, "nothing is fetched without a transceiver"
        return how.deadline_seconds + prompt_tokens * how.bytes_per_token / how.bytes_per_second


def llm_arguments(config: TrtConfig, library: Library, can: Capabilities, max_model_len: int) -> dict[str, Any]:
    """Of `LLM(...)`. Raises Unsupported for what this version has no field for."""
    config.check()
    arguments: dict[str, Any] = {
        "model": str(config.model_dir),
        # Tokens in, tokens out; but guides are made of a tokenizer's vocabulary: the engine asserts that it has one.
        "skip_tokenizer_init": config.guided_backend is None,
        "backend": "pytorch",
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel,
        "pipeline_parallel_size": config.pipeline_parallel,
        "max_batch_size": config.max_num_seqs,
        "max_num_tokens": config.max_batched_tokens,
        "max_seq_len": max_model_len,
        "max_beam_width": 1,
        "enable_chunked_prefill": True,
        "kv_cache_config": library.KvCacheConfig(**_kv_cache(config, can)),
        "scheduler_config": library.SchedulerConfig(**_scheduler(can)),
        "cuda_graph_config": library.CudaGraphConfig(max_batch_size=config.max_num_seqs, enable_padding=True),
        "guided_decoding_backend": config.guided_backend,
        "stream_interval": config.stream_interval,
        "enable_iter_perf_stats": True,
    }
    if config.expert_parallel is not None:
        arguments["moe_expert_parallel_size"] = config.expert_parallel
    if config.gpus_per_node is not None:
        arguments["gpus_per_node"] = config.gpus_per_node
    if config.max_adapters:
        arguments["enable_lora"] = True
        arguments["lora_config"] = library.LoraConfig(
            max_lora_rank=config.max_adapter_rank,
            max_loras=config.max_adapters,
            max_cpu_loras=config.max_adapters,
            # Without one adapter's directory to look at, the engine does not start without these.
            lora_target_modules=list(config.adapter_modules),
        )
    if config.speculation is not None:
        arguments["speculative_config"] = _speculation(config.speculation, library)
    if config.transceiver is not None:
        fields = _transceiver(config.transceiver, can, max_model_len)
        arguments["cache_transceiver_config"] = library.CacheTransceiverConfig(**fields)
        # Prompts alone are not computed in overlapped steps: the documentation asks for it of context servers.
        arguments["disable_overlap_scheduler"] = config.transceiver.hands_off
    if config.connector is not None:
        arguments["kv_connector_config"] = library.KvCacheConnectorConfig(
            connector_module=MODULE, connector_scheduler_class=SCHEDULER, connector_worker_class=WORKER
        )
    if both := ", ".join(sorted(set(config.extra) & set(arguments))):
        raise Unsupported(f"trtllm_extra: {both} have settings of their own")
    arguments |= config.extra
    if config.connector is not None:
        check_arguments(arguments, config.block_size)
    return arguments


def _speculation(asked: Mapping[str, Any], library: Library) -> Any:
    """Older versions take an object of the kind that `decoding_type` names, newer ones the dict as well."""
    return dict(asked) if library.make_speculation is None else library.make_speculation(dict(asked))


def _transceiver(how: Transceiver, can: Capabilities, max_model_len: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"backend": how.backend, "max_tokens_in_buffer": how.max_tokens or max_model_len}
    if can.transfer_timeout:
        fields["kv_transfer_timeout_ms"] = max(1, round(how.timeout_seconds * 1000))
    if how.runtime is not None:
        if not can.transceiver_runtime:
            raise Unsupported("transceiver runtime: this version of TensorRT-LLM has no choice of it")
        fields["transceiver_runtime"] = how.runtime
    return fields


def _kv_cache(config: TrtConfig, can: Capabilities) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "enable_block_reuse": config.prefix_cache,
        # Parts of blocks have no name, so nobody could be told of them, and a connector's would be overwritten.
        "enable_partial_reuse": False,
        "free_gpu_memory_fraction": config.kv_cache_fraction,
        "tokens_per_block": config.block_size,
        "dtype": config.kv_dtype,
        "event_buffer_max_size": _EVENT_BUFFER if config.prefix_cache else 0,
    }
    if config.kv_cache_max_tokens is not None:
        fields["max_tokens"] = config.kv_cache_max_tokens
    if config.host_cache_bytes:
        fields["host_cache_size"] = config.host_cache_bytes
    if config.disk_cache_bytes:
        if not can.disk_cache:
            raise Unsupported("disk_cache_bytes: this version of TensorRT-LLM has no disk tier")
        fields |= {"disk_cache_size": config.disk_cache_bytes, "disk_cache_path": str(config.disk_cache_dir)}
    if config.connector is not None and can.manager_v2:
        fields["use_kv_cache_manager_v2"] = False
    return fields


def _scheduler(can: Capabilities) -> dict[str, Any]:
    """What runs is never pushed out by what comes: the queue before it is ours."""
    fields: dict[str, Any] = {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT"}
    if can.priority:
        fields["waiting_queue_policy"] = "priority"
    return fields
