"""Our engine: a decoder in PyTorch, on CPU or CUDA, behind the step loop.

A step reads: schedule → run → sample → emit. `step_loop.py` holds the loop, `stepped_engine.py`
the engine around it, this file what they are made of.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from weir_executor.engine import EngineInfo
from weir_executor.paged.adapters import Adapters
from weir_executor.paged.compute import Placement, build_compute
from weir_executor.paged.fit import enough_memory
from weir_executor.paged.kv_cache import KV_LAYOUT, block_bytes
from weir_executor.paged.model.config import ModelConfig, ModelConfigError
from weir_executor.paged.model.registry import load_config
from weir_executor.paged.parallel.layout import Layout
from weir_executor.paged.runner import ModelRunner, use_threads
from weir_executor.paged.scheduler import SchedulerLimits
from weir_executor.paged.speculation.draft_model import DraftLimits, DraftModel
from weir_executor.paged.speculation.drafter import Drafter, SpeculationOptions
from weir_executor.paged.step_loop import LoopOptions
from weir_executor.paged.stepped_engine import SteppedEngine
from weir_executor.paged.tenants import Tenants
from weir_executor.paged.workload import Workload

_WEIGHT_BITS = {"dtype": 0, "int8": 8, "int4": 4}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class PagedEngineConfig:
    """What the engine loads and its limits. The edge has checked the values' ranges."""

    model_dir: Path
    device: str = "cpu"
    tensor_parallel: int = 1  # ranks that share every layer
    pipeline_parallel: int = 1  # stages that share the layers
    dtype: str = "auto"  # "float32", "bfloat16", "float16"; "auto": as the checkpoint says
    block_size: int = 16  # tokens
    num_blocks: int | None = None  # overrides `kv_cache_bytes`
    kv_cache_bytes: int = 1 << 30  # of all ranks together
    max_num_seqs: int = 32
    max_batched_tokens: int = 512
    max_waiting: int = 256  # requests
    max_model_len: int | None = None  # at most the model's own
    max_n: int = 16
    max_top_logprobs: int = 20
    num_threads: int | None = None  # on a CPU; None: PyTorch's choice
    kernels: str = "auto"  # on a CPU, see `native.load.KERNELS`; "auto": the native ones where they can be had
    weights: str = "dtype"  # or "int8", "int4": rounded when loaded, computed by native kernels only
    max_adapters: int = 0  # loaded at once
    max_adapter_rank: int = 64
    prefix_cache: bool = True
    kv_ttl_seconds: float | None = None
    emit_full_blocks: bool = False
    offered_bytes_per_second: float | None = None  # of full blocks while requests run; None: as they become full
    itl_target_seconds: float | None = None  # inter-token latency to keep to by smaller chunks
    tenants: Tenants = field(default_factory=Tenants)
    speculation: SpeculationOptions = field(default_factory=SpeculationOptions)
    draft_model_dir: Path | None = None  # of a model with the same vocabulary, that guesses
    warm_up: bool = True  # a small request before any other
    check_integrity: bool = False  # after every step: for tests


class PagedEngine(SteppedEngine):
    """See `Engine`. Made by `load_engine`, with all that it holds besides memory."""

    def __init__(
        self,
        info: EngineInfo,
        limits: SchedulerLimits,
        worker: ModelRunner,
        options: LoopOptions,
        *,
        adapters: Adapters,
        drafter: Drafter,
        resources: ExitStack,
    ) -> None:
        super().__init__(info, limits, worker, options, adapters=adapters, drafter=drafter)
        self._runner, self._resources = worker, resources

    def check_health(self) -> None:
        super().check_health()
        self._runner.check()

    def close(self) -> None:
        super().close()
        self._resources.close()


def load_engine(config: PagedEngineConfig) -> PagedEngine:
    """Read the model, allocate the cache. Raises `ModelConfigError` or `ModelLoadError`.

    In a thread that ends with it: every thread that computes has OpenMP helpers of its own for as long as it lives, and
    as soon as a process has more of them than cores they sleep between operations. Left behind by loading, they made
    the step thread's small products about twice as slow.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="load-model") as thread:
        return thread.submit(_load, config).result()


def _load(config: PagedEngineConfig) -> PagedEngine:
    use_threads(config.num_threads)
    model_config = load_config(config.model_dir)
    dtype = _dtype(config, model_config)
    draft_config = _draft_config(config, model_config)
    num_blocks = config.num_blocks or config.kv_cache_bytes // _bytes_per_block(config, model_config, draft_config)
    if num_blocks < 1:
        raise ModelConfigError(f"kv_cache_bytes: {config.kv_cache_bytes} is less than one block")
    max_model_len = _max_model_len(config, model_config, num_blocks)
    workload = Workload(
        model_dir=config.model_dir,
        model=model_config,
        dtype=dtype,
        max_model_len=max_model_len,
        block_size=config.block_size,
        num_blocks=num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_batched_tokens=config.max_batched_tokens,
        max_adapter_rank=config.max_adapter_rank if config.max_adapters else 0,
        weight_bits=_WEIGHT_BITS[config.weights],
    )
    with ExitStack() as resources:
        placement = _placement(config)
        with enough_memory(workload, torch.device(placement.device), placement.layout):
            compute = build_compute(workload, placement, resources)
        draft_model = None if draft_config is None else _load_draft(config, workload, draft_config, resources)
        return PagedEngine(
            _info(config, workload, compute.kernels),
            SchedulerLimits(
                config.max_num_seqs, config.max_batched_tokens, config.block_size, config.tenants, compute.looks_ahead
            ),
            ModelRunner(compute.decoder, compute.blocks, config.num_threads, compute.check),
            LoopOptions(
                max_waiting=config.max_waiting,
                emit_full_blocks=config.emit_full_blocks,
                offered_blocks_per_second=_per_block(config.offered_bytes_per_second, compute.blocks.block_bytes),
                prefix_cache=config.prefix_cache,
                kv_ttl_seconds=config.kv_ttl_seconds,
                itl_target_seconds=config.itl_target_seconds,
                warm_up=config.warm_up,
                check_integrity=config.check_integrity,
            ),
            adapters=compute.adapters,
            drafter=Drafter(config.speculation, draft_model),
            resources=resources.pop_all(),
        )


def _per_block(bytes_per_second: float | None, block_bytes: int) -> float | None:
    return None if bytes_per_second is None else bytes_per_second / block_bytes


def _placement(config: PagedEngineConfig) -> Placement:
    return Placement(
        config.device, config.kernels, config.num_threads, Layout(config.tensor_parallel, config.pipeline_parallel)
    )


def _dtype(config: PagedEngineConfig, model_config: ModelConfig) -> torch.dtype:
    name = model_config.dtype if config.dtype == "auto" else config.dtype
    if name not in _DTYPES:
        raise ModelConfigError(f"dtype {name!r} is not known here; known: {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _draft_config(config: PagedEngineConfig, model: ModelConfig) -> ModelConfig | None:
    if config.draft_model_dir is None:
        return None
    draft = load_config(config.draft_model_dir)
    if draft.vocab_size != model.vocab_size:
        raise ModelConfigError(
            f"draft_model_dir: a vocabulary of {draft.vocab_size}, the model's is {model.vocab_size}"
        )
    return draft


def _bytes_per_block(config: PagedEngineConfig, *models: ModelConfig | None) -> int:
    """Of all models that keep KV under a block's id."""
    return sum(block_bytes(model, config.block_size, _dtype(config, model)) for model in models if model is not None)


def _load_draft(
    config: PagedEngineConfig, target: Workload, draft_config: ModelConfig, resources: ExitStack
) -> DraftModel:
    """On the first rank's device, whole, with a place for each of the model's blocks."""
    assert config.draft_model_dir is not None
    max_len = min(target.max_model_len, draft_config.position_limit)
    dtype = _dtype(config, draft_config)
    workload = replace(
        target,
        model_dir=config.draft_model_dir,
        model=draft_config,
        dtype=dtype,
        max_model_len=max_len,
        max_adapter_rank=0,
    )
    placement = replace(_placement(config), layout=Layout(1, 1))
    with enough_memory(workload, torch.device(placement.device), placement.layout):
        compute = build_compute(workload, placement, resources)
    limits = DraftLimits(target.num_blocks, target.block_size, max_len, config.max_batched_tokens)
    return DraftModel(compute.decoder, compute.blocks, limits)


def _max_model_len(config: PagedEngineConfig, model_config: ModelConfig, num_blocks: int) -> int:
    """The context that model, pool and operator all allow: a sequence must always fit the pool alone."""
    limit = model_config.position_limit
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ModelConfigError(f"max_model_len {config.max_model_len} is beyond the model's {limit}")
    return min(config.max_model_len or limit, num_blocks * config.block_size)


def _info(config: PagedEngineConfig, workload: Workload, kernels: str) -> EngineInfo:
    model = workload.model
    return EngineInfo(
        engine="paged",
        vocab_size=model.vocab_size,
        max_model_len=workload.max_model_len,
        block_size=config.block_size,
        num_blocks=workload.num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_n=config.max_n,
        max_top_logprobs=config.max_top_logprobs,
        eos_token_ids=model.eos_token_ids,
        block_bytes=block_bytes(model, config.block_size, workload.dtype),
        kv_dtype=str(workload.dtype).removeprefix("torch."),
        kv_layout=KV_LAYOUT + model.kv_variant(workload.max_model_len) + _weights_variant(workload),
        transfers_blocks=True,
        hands_off=True,
        embedding_size=model.hidden_size,
        takes_guides=True,
        takes_watermarks=True,
        max_adapters=config.max_adapters,
        max_adapter_rank=workload.max_adapter_rank,
        compute=f"{_weights(workload)}, {kernels}",
    )


def _weights(workload: Workload) -> str:
    dtype = str(workload.dtype).removeprefix("torch.")
    return f"int{workload.weight_bits} in {dtype}" if workload.weight_bits else dtype


def _weights_variant(workload: Workload) -> str:
    """Rounded weights give other keys and values, which are not for those who do not round."""
    return f",int{workload.weight_bits}" if workload.weight_bits else ""
