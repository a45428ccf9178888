"""Which engine computes, and what it is told: each is loaded here, and its libraries with it."""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from weir_chassis.errors import WeirError
from weir_chassis.settings import SettingsError
from weir_executor.engine import Engine
from weir_executor.foreign.eos import read_eos
from weir_executor.handoff.role import Role
from weir_executor.mapping import cache_scope
from weir_executor.memory.shape import UnknownShapeError, read_shape
from weir_executor.model_files import ModelFiles, bad_model
from weir_executor.paged.speculation.drafter import SpeculationOptions
from weir_executor.paged.tenants import TenantLimits, Tenants
from weir_executor.request import SpeculationMode
from weir_executor.settings import ExecutorSettings

if TYPE_CHECKING:
    from weir_executor.trtllm.config import ConnectorConfig, Transceiver


def load_engine(settings: ExecutorSettings, files: ModelFiles) -> Engine:
    """The engine, not yet started. Takes as long as the weights take. Raises SettingsError."""
    if settings.engine == "fake":
        return _load_fake(settings, files.config)
    if settings.engine == "trtllm":
        return _load_trtllm(settings)
    if settings.engine == "openengine":
        return _load_openengine(settings, files)
    return _load_paged(settings)


def _load_paged(settings: ExecutorSettings) -> Engine:
    # Imported here, because only this engine needs torch, and importing that takes seconds.
    from weir_executor.paged.engine import PagedEngineConfig  # noqa: PLC0415
    from weir_executor.paged.engine import load_engine as load_paged  # noqa: PLC0415
    from weir_executor.paged.model.weights import ModelLoadError  # noqa: PLC0415

    config = PagedEngineConfig(
        model_dir=settings.model_dir,
        device=settings.device,
        tensor_parallel=settings.tensor_parallel,
        pipeline_parallel=settings.pipeline_parallel,
        dtype=settings.dtype,
        block_size=settings.block_size,
        num_blocks=settings.num_blocks,
        kv_cache_bytes=settings.kv_cache_bytes,
        max_num_seqs=settings.max_num_seqs,
        max_batched_tokens=settings.max_batched_tokens,
        max_waiting=settings.max_waiting,
        max_model_len=settings.max_model_len,
        num_threads=settings.num_threads,
        kernels=settings.kernels,
        weights=settings.weights,
        prefix_cache=settings.prefix_cache,
        kv_ttl_seconds=settings.kv_ttl_seconds,
        itl_target_seconds=_itl_target(settings),
        tenants=_tenants(settings),
        max_adapters=settings.max_adapters,
        max_adapter_rank=settings.max_adapter_rank,
        speculation=_speculation(settings),
        draft_model_dir=settings.draft_model_dir,
        emit_full_blocks=bool(settings.kvstore_address),
        offered_bytes_per_second=settings.kvstore_busy_bytes_per_second,
    )
    try:
        return load_paged(config)
    # ValueError and OSError: what the files say; RuntimeError: what the device says, such as that there is none.
    except (ModelLoadError, ValueError, OSError, RuntimeError) as error:
        raise bad_model(settings, f"{error} (device {settings.device!r}, dtype {settings.dtype!r})") from error


def _load_trtllm(settings: ExecutorSettings) -> Engine:
    from weir_executor.trtllm.config import ADAPTER_MODULES, TrtConfig  # noqa: PLC0415  # what else needs it
    from weir_executor.trtllm.load import load_engine as load_trtllm  # noqa: PLC0415
    from weir_executor.trtllm.probe import UnknownVersionError  # noqa: PLC0415
    from weir_executor.trtllm.retention import Retention  # noqa: PLC0415

    backend = settings.trtllm_guided_backend
    config = TrtConfig(
        model_dir=settings.model_dir,
        max_num_seqs=settings.max_num_seqs,
        max_batched_tokens=settings.max_batched_tokens,
        max_waiting=settings.max_waiting,
        max_model_len=settings.max_model_len,
        block_size=settings.block_size,
        kv_cache_fraction=settings.trtllm_kv_cache_fraction,
        kv_cache_max_tokens=None if settings.num_blocks is None else settings.num_blocks * settings.block_size,
        kv_dtype=settings.trtllm_kv_dtype,
        dtype=settings.dtype,
        prefix_cache=settings.prefix_cache,
        host_cache_bytes=settings.trtllm_host_cache_bytes,
        disk_cache_bytes=settings.trtllm_disk_cache_bytes,
        disk_cache_dir=settings.trtllm_disk_cache_dir,
        connector=_connector(settings),
        tensor_parallel=settings.tensor_parallel,
        pipeline_parallel=settings.pipeline_parallel,
        expert_parallel=settings.trtllm_expert_parallel,
        gpus_per_node=settings.trtllm_gpus_per_node,
        guided_backend=None if backend == "none" else backend,
        max_adapters=settings.max_adapters,
        max_adapter_rank=settings.max_adapter_rank,
        adapter_modules=tuple(settings.trtllm_adapter_modules or ADAPTER_MODULES),
        speculation=settings.trtllm_speculation,
        retention=Retention(**settings.trtllm_retention.model_dump()),
        stream_interval=settings.trtllm_stream_interval,
        allow_unknown_version=settings.trtllm_allow_unknown_version,
        extra=settings.trtllm_extra,
        transceiver=_transceiver(settings),
    )
    try:
        return load_trtllm(config, end_process=partial(os._exit, 1))
    except ImportError as error:
        raise SettingsError(
            f"WEIR_EXECUTOR_ENGINE=trtllm: {error}. TensorRT-LLM comes with NVIDIA's own image; "
            "WEIR_EXECUTOR_ENGINE=paged needs none"
        ) from error
    except (UnknownVersionError, WeirError, ValueError, OSError, RuntimeError) as error:
        raise bad_model(settings, str(error)) from error


def _transceiver(settings: ExecutorSettings) -> Transceiver | None:
    """None: prompts are computed where they are decoded."""
    from weir_executor.trtllm.config import Transceiver  # noqa: PLC0415  # what else needs it

    role, backend = Role(settings.role), settings.trtllm_cache_transceiver
    if backend is None:
        backend = "none" if role is Role.BOTH else "DEFAULT"
    if backend == "none":
        return None
    machine_id = settings.trtllm_machine_id
    return Transceiver(
        backend=backend,
        runtime=settings.trtllm_transceiver_runtime,
        max_tokens=settings.trtllm_transfer_tokens,
        hands_off=role is not Role.DECODE,
        takes_over=role is not Role.PREFILL,
        timeout_seconds=settings.handoff_lease_seconds,
        deadline_seconds=settings.handoff_deadline_seconds,
        bytes_per_second=settings.handoff_bytes_per_second,
        bytes_per_token=_bytes_per_token(settings),
        machine_id=_drawn_machine_id() if machine_id is None else machine_id,
    )


def _bytes_per_token(settings: ExecutorSettings) -> int:
    """Of keys and values of all layers in 16 bits; 0 for a model whose shape is not known here."""
    try:
        shape = read_shape(settings.model_dir)
    except UnknownShapeError:
        return 0
    return shape.num_layers * 2 * shape.num_kv_heads * shape.head_dim * 2


def _drawn_machine_id() -> int:
    return zlib.crc32(f"{socket.gethostname()}/{os.getpid()}".encode()) % 1021


def _connector(settings: ExecutorSettings) -> ConnectorConfig | None:
    from weir_executor.trtllm.config import ConnectorConfig  # noqa: PLC0415  # what else needs it

    if settings.trtllm_kv_tier == "engine":
        return None
    return ConnectorConfig(
        kvstore_address=settings.kvstore_address,
        staging_dir=settings.trtllm_staging_dir,
        staging_bytes=settings.kvstore_load_bytes,
        queue_bytes=settings.kvstore_queue_bytes,
        bytes_per_second=settings.kvstore_bytes_per_second,
    )


def _load_openengine(settings: ExecutorSettings, files: ModelFiles) -> Engine:
    from weir_executor.openengine.capabilities import WrongServerError  # noqa: PLC0415  # what else needs it
    from weir_executor.openengine.config import OpenEngineConfig  # noqa: PLC0415
    from weir_executor.openengine.load import load_engine as load_openengine  # noqa: PLC0415

    try:
        longest = settings.max_model_len or int(files.config["max_position_embeddings"])
        eos_token_ids = read_eos(settings.model_dir, files.config)
        vocab_size = int(files.config["vocab_size"])
    except (KeyError, ValueError) as error:
        raise bad_model(settings, f"config.json: {error}") from error
    config = OpenEngineConfig(
        address=settings.openengine_address,
        model=settings.openengine_model or settings.model,
        vocab_size=vocab_size,
        eos_token_ids=eos_token_ids,
        max_model_len=longest,
        plain_scope=cache_scope(files.version),
        block_size=settings.block_size,
        num_blocks=settings.num_blocks,
        max_num_seqs=settings.max_num_seqs,
        max_batched_tokens=settings.max_batched_tokens,
        max_waiting=settings.max_waiting,
        max_adapter_rank=settings.max_adapter_rank,
        tls_ca_file=settings.openengine_tls_ca_file,
        start_seconds=settings.openengine_start_seconds,
        call_seconds=settings.openengine_call_seconds,
        stall_seconds=settings.openengine_stall_seconds,
    )
    address = f"WEIR_EXECUTOR_OPENENGINE_ADDRESS={config.address!r}"
    try:
        return load_openengine(config)
    except TimeoutError as error:
        raise SettingsError(f"{address}: not ready within {config.start_seconds:g} s") from error
    except (WrongServerError, OSError) as error:
        raise SettingsError(f"{address}: {error}") from error


def _load_fake(settings: ExecutorSettings, config: Mapping[str, Any]) -> Engine:
    from weir_executor.fake import FakeEngine, FakeEngineConfig  # noqa: PLC0415  # not for production

    default = FakeEngineConfig()
    return FakeEngine(
        FakeEngineConfig(
            vocab_size=int(config.get("vocab_size", default.vocab_size)),
            max_model_len=settings.max_model_len or default.max_model_len,
            block_size=settings.block_size,
            num_blocks=settings.num_blocks or default.num_blocks,
            max_num_seqs=settings.max_num_seqs,
            max_batched_tokens=settings.max_batched_tokens,
            max_waiting=settings.max_waiting,
            step_seconds=settings.fake_step_seconds,
            prefix_cache=settings.prefix_cache,
            kv_ttl_seconds=settings.kv_ttl_seconds,
            itl_target_seconds=_itl_target(settings),
            tenants=_tenants(settings),
            max_adapters=settings.max_adapters,
            max_adapter_rank=settings.max_adapter_rank,
            speculation=_speculation(settings),
            emit_full_blocks=bool(settings.kvstore_address),
            warm_up=True,
        )
    )


def _tenants(settings: ExecutorSettings) -> Tenants:
    return Tenants({name: TenantLimits(**tenant.model_dump()) for name, tenant in settings.tenants.items()})


def _speculation(settings: ExecutorSettings) -> SpeculationOptions:
    mode = SpeculationMode(settings.speculation)
    return SpeculationOptions(mode, settings.max_draft_tokens, settings.adaptive_drafts)


def _itl_target(settings: ExecutorSettings) -> float | None:
    return None if settings.itl_target_ms is None else settings.itl_target_ms / 1e3
