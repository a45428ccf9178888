"""The executor service, from settings to servicer. The only place where its objects meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

from weir.executor.v1 import executor_pb2
from weir.executor.v1.handoff_grpc import add_servicer_to_server
from weir_chassis.drain_rate import DrainRate
from weir_chassis.errors import Internal, WeirError
from weir_chassis.event_log import new_epoch
from weir_chassis.kv_events.blocks import new_log
from weir_chassis.kv_events.publisher import KvEventPublisher
from weir_chassis.kv_events.wire import Source
from weir_chassis.nats import connect_nats, source_name
from weir_chassis.rate import Rate
from weir_chassis.server import Chassis, Registration, ServiceDefinition, Servicers
from weir_chassis.settings import SettingsError
from weir_chassis.telemetry import get_logger
from weir_executor.adapters.base import Base
from weir_executor.adapters.operations import AdapterOperations
from weir_executor.adapters.table import AdapterTable
from weir_executor.admission import Admission
from weir_executor.deadlines import Deadlines
from weir_executor.description import describe
from weir_executor.engine import Engine, SpeculationMode
from weir_executor.engine_watch import EngineWatch
from weir_executor.guided.compile_process import CompileLimits
from weir_executor.guided.compiler import GuideCompiler, GuideLimits, load_compiler
from weir_executor.handoff.jobs import PrefillJobs
from weir_executor.handoff.role import Role
from weir_executor.handoff.table import HandoffTable
from weir_executor.handoff.take_over import TakeOverLimits, TakeOvers
from weir_executor.kv_events import recorder
from weir_executor.kv_transfer import ArenaTransport, KvTransfer, LoaderLimits, TransferLimits, WriterLimits
from weir_executor.kv_transfer.hashes import Namespaces
from weir_executor.live_requests import LiveRequests
from weir_executor.mapping import Served
from weir_executor.metrics import ExecutorMetrics
from weir_executor.model_files import ModelFiles, bad_model, read_model_files
from weir_executor.paged.speculation.drafter import SpeculationOptions
from weir_executor.paged.tenants import TenantLimits, Tenants
from weir_executor.servicer import ExecutorServicer
from weir_executor.settings import ExecutorSettings
from weir_executor.step_fanout import StepFanout
from weir_executor.watermark.keys import WatermarkKeys, read_keys

SERVICE_NAME: Final = executor_pb2.DESCRIPTOR.services_by_name["ExecutorService"].full_name
_STREAMS = ("Generate", "WatchKvEvents", "LoadAdapter", "UnloadAdapter", "ReadHandoff")
_UNBOUNDED: Final = frozenset(f"/{SERVICE_NAME}/{method}" for method in _STREAMS)
# A put takes what it takes in the background, so its deadline only has to notice a store that hangs.
_PUT_SECONDS = 5.0


@asynccontextmanager
async def build(settings: ExecutorSettings, chassis: Chassis) -> AsyncIterator[Servicers]:
    """Loads the weights, starts the engine. Raises SettingsError for a model that cannot be served."""
    files = await asyncio.to_thread(read_model_files, settings)
    engine = await asyncio.to_thread(load_engine, settings, files)
    async with serving(engine, files, settings, chassis) as servicers:
        yield servicers


def load_engine(settings: ExecutorSettings, files: ModelFiles) -> Engine:
    """The engine, not yet started. Takes as long as the weights take. Raises SettingsError."""
    if settings.engine == "fake":
        return _load_fake(settings, files.config)
    if settings.engine == "trtllm":
        return _load_trtllm(settings)
    return _load_paged(settings)


@asynccontextmanager
async def serving(
    engine: Engine, files: ModelFiles, settings: ExecutorSettings, chassis: Chassis
) -> AsyncIterator[Servicers]:
    """Everything around an engine. Starts it, and closes it at the end."""
    metrics, drain_rate = ExecutorMetrics(chassis.metrics), DrainRate(chassis.clock)
    token_rate = Rate(chassis.clock)
    requests = LiveRequests(chassis.leases)
    kv_events = new_log(new_epoch(chassis.random), settings.kv_event_log)
    deadlines = Deadlines(chassis.clock)
    async with AsyncExitStack() as stack:
        guides = await _start_guides(stack, engine, settings)
        served = Served(
            files.version,
            engine.info,
            files.default_sampling,
            takes_guides=guides is not None,
            watermark_keys=_read_watermark_keys(engine, settings),
            role=_role(engine, settings),
        )
        transfer = await _connect_store(stack, engine, settings, chassis, metrics)
        offer, wants = (transfer.offer, transfer.wants) if transfer is not None else (None, None)
        handoffs = _handoff_table(engine, settings, chassis)
        take_overs = _take_overs(stack, engine, settings, chassis, metrics)
        fanout = StepFanout(
            requests,
            deadlines,
            drain_rate,
            token_rate,
            metrics,
            handoffs=handoffs,
            record=recorder(kv_events),
            offer=offer,
        )
        adapters = AdapterTable(engine.info.max_adapters, engine.unload_adapter)
        base = Base(settings.model, files.version.revision, settings.model_dir)
        operations = AdapterOperations(engine, adapters, base, settings.adapter_dir)
        admission = Admission(
            engine,
            served,
            adapters=adapters,
            requests=requests,
            deadlines=deadlines,
            drain_rate=drain_rate,
            transfer=transfer,
            take_overs=take_overs,
            guides=guides,
            max_waiting=settings.max_waiting,
            draw_seed=lambda: chassis.random.getrandbits(64),
        )
        servicer = ExecutorServicer(
            engine,
            served,
            admission,
            adapters=adapters,
            operations=operations,
            requests=requests,
            handoffs=handoffs,
            kv_events=kv_events,
            token_rate=token_rate,
            leases=chassis.leases,
            max_buffered=settings.stream_buffer_entries,
            deltas_per_second=settings.stream_deltas_per_second,
        )
        stack.callback(fanout.close)
        stack.push_async_callback(asyncio.to_thread, engine.close)
        await _load_adapters(operations, settings)
        await asyncio.to_thread(engine.start, fanout.deliver, wants)
        chassis.background.start(deadlines.run(admission.expire), name="sweep_deadlines")
        chassis.background.start(handoffs.run(), name="sweep_handoffs")
        watch = EngineWatch(engine, fanout, metrics, chassis.clock, hang_seconds=settings.hang_seconds)
        chassis.background.start(watch.run(partial(_engine_stopped, servicer, chassis)), name="watch_engine")
        if transfer is not None:
            chassis.background.start(transfer.run(), name="put_blocks")
        if (connection := connect_nats(settings, chassis)) is not None:
            source = Source(chassis.service, source_name(settings, chassis.random))
            publisher = KvEventPublisher(connection, source, kv_events, chassis.metrics, chassis.clock)
            chassis.background.start(publisher.run(), name="publish_kv_events")
            if served.role is Role.PREFILL:
                jobs = PrefillJobs(
                    connection,
                    files.version,
                    source.name,
                    load=engine.load,
                    is_open=lambda: admission.is_open,
                    max_tokens=settings.prefill_job_tokens,
                    metrics=metrics,
                    clock=chassis.clock,
                )
                chassis.background.start(jobs.run(), name="take_prefill_jobs")
        chassis.identity.describe(describe(served, settings))
        registration = Registration(add_servicer_to_server, servicer, SERVICE_NAME)
        yield Servicers([registration], models=[settings.model], drain=servicer.drain)


async def _load_adapters(operations: AdapterOperations, settings: ExecutorSettings) -> None:
    """Those of the settings, before anybody can ask for them. Raises SettingsError."""
    for name, directory in settings.adapters.items():
        try:
            async for _ in operations.load(name, directory):
                pass
        except WeirError as error:
            raise SettingsError(f"WEIR_EXECUTOR_ADAPTERS: {name}: {error.message}") from error


def _engine_stopped(servicer: ExecutorServicer, chassis: Chassis) -> None:
    chassis.health.stop()
    servicer.fail(Internal("the engine stopped; the service's log says why"))


def _read_watermark_keys(engine: Engine, settings: ExecutorSettings) -> WatermarkKeys | None:
    if settings.watermark_key_file is None or not engine.info.takes_watermarks:
        return None
    try:
        return read_keys(settings.watermark_key_file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"WEIR_EXECUTOR_WATERMARK_KEY_FILE: {error}") from error


async def _start_guides(stack: AsyncExitStack, engine: Engine, settings: ExecutorSettings) -> GuideCompiler | None:
    if not engine.info.takes_guides:
        return None
    limits = GuideLimits(
        CompileLimits(settings.guide_seconds, settings.guide_process_bytes, settings.guide_bytes),
        settings.guide_cache_bytes,
    )
    tokenizer_json = settings.model_dir / "tokenizer.json"
    try:
        guides = await asyncio.to_thread(load_compiler, tokenizer_json, engine.info.vocab_size, limits)
    except (ImportError, OSError, ValueError) as error:
        get_logger().warning("no_guides", reason=str(error))
        return None
    stack.push_async_callback(guides.close)
    return guides


def _role(engine: Engine, settings: ExecutorSettings) -> Role:
    role = Role(settings.role)
    if role is Role.PREFILL and not engine.info.transfers_blocks:
        raise SettingsError("WEIR_EXECUTOR_ROLE: prefill, and the engine cannot hand its blocks over")
    return role


def _handoff_table(engine: Engine, settings: ExecutorSettings, chassis: Chassis) -> HandoffTable:
    return HandoffTable(
        chassis.leases,
        chassis.random,
        namespaces=Namespaces(engine.info),
        lease_seconds=settings.handoff_lease_seconds,
        release_held=engine.release_held,
    )


def _take_overs(
    stack: AsyncExitStack, engine: Engine, settings: ExecutorSettings, chassis: Chassis, metrics: ExecutorMetrics
) -> TakeOvers:
    limits = TakeOverLimits(
        deadline_seconds=settings.handoff_deadline_seconds,
        bytes_per_second=settings.handoff_bytes_per_second,
        budget_bytes=settings.handoff_read_bytes,
        max_reads=settings.handoff_max_reads,
    )
    take_overs = TakeOvers(engine, chassis.connect, limits, metrics=metrics, clock=chassis.clock)
    stack.push_async_callback(take_overs.close)
    return take_overs


async def _connect_store(
    stack: AsyncExitStack, engine: Engine, settings: ExecutorSettings, chassis: Chassis, metrics: ExecutorMetrics
) -> KvTransfer | None:
    if not settings.kvstore_address or not engine.info.transfers_blocks:
        return None
    channel = chassis.connect(settings.kvstore_address)
    stack.push_async_callback(channel.close, None)
    limits = TransferLimits(
        LoaderLimits(
            deadline_seconds=settings.kvstore_deadline_seconds,
            bytes_per_second=settings.kvstore_bytes_per_second,
            min_blocks=settings.kvstore_min_blocks,
            budget_bytes=settings.kvstore_load_bytes,
            max_loads=settings.kvstore_max_loads,
        ),
        WriterLimits(settings.kvstore_queue_bytes, _PUT_SECONDS, settings.kvstore_bytes_per_second),
    )
    transport = ArenaTransport(channel, chassis.clock)
    transfer = KvTransfer(transport, engine, limits, metrics=metrics, clock=chassis.clock, random=chassis.random)
    stack.push_async_callback(transfer.close)
    return transfer


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
    from weir_executor.trtllm.config import TrtConfig  # noqa: PLC0415  # what else needs it
    from weir_executor.trtllm.load import load_engine as load_trtllm  # noqa: PLC0415
    from weir_executor.trtllm.probe import UnknownVersionError  # noqa: PLC0415

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
        tensor_parallel=settings.tensor_parallel,
        pipeline_parallel=settings.pipeline_parallel,
        expert_parallel=settings.trtllm_expert_parallel,
        gpus_per_node=settings.trtllm_gpus_per_node,
        guided_backend=None if backend == "none" else backend,
        max_adapters=settings.max_adapters,
        max_adapter_rank=settings.max_adapter_rank,
        speculation=settings.trtllm_speculation,
        stream_interval=settings.trtllm_stream_interval,
        allow_unknown_version=settings.trtllm_allow_unknown_version,
        extra=settings.trtllm_extra,
    )
    try:
        return load_trtllm(config)
    except ImportError as error:
        raise SettingsError(
            f"WEIR_EXECUTOR_ENGINE=trtllm: {error}. TensorRT-LLM comes with NVIDIA's own image; "
            "WEIR_EXECUTOR_ENGINE=paged needs none"
        ) from error
    except (UnknownVersionError, WeirError, ValueError, OSError, RuntimeError) as error:
        raise bad_model(settings, str(error)) from error


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


SERVICE: Final = ServiceDefinition("executor", ExecutorSettings, build, unbounded=_UNBOUNDED)
