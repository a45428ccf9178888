"""The executor service, from settings to servicer. The only place where its objects meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from weir.executor.v1 import executor_pb2
from weir.executor.v1.handoff_grpc import add_servicer_to_server
from weir_chassis.drain_rate import DrainRate
from weir_chassis.errors import Internal, WeirError
from weir_chassis.event_log import new_epoch
from weir_chassis.health import PROCESS, Health, model_name
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
from weir_executor.engine import Engine
from weir_executor.engine_watch import EngineWatch
from weir_executor.engines import load_engine
from weir_executor.guided.compile_process import CompileLimits
from weir_executor.guided.compiler import GuideCompiler, GuideLimits, load_compiler
from weir_executor.handoff.jobs import PrefillJobs
from weir_executor.handoff.role import Role
from weir_executor.handoff.table import HandoffTable
from weir_executor.handoff.take_over import TakeOverLimits, TakeOvers
from weir_executor.kv_events import recorder
from weir_executor.kv_transfer import ArenaTransport, KvTransfer, LoaderLimits, TransferLimits, WriterLimits
from weir_executor.kv_transfer.copier import load_copier
from weir_executor.kv_transfer.hashes import Namespaces
from weir_executor.kv_transfer.shards import ShardedTransport
from weir_executor.kv_transfer.transport import BlockTransport
from weir_executor.live_requests import LiveRequests
from weir_executor.mapping import Served
from weir_executor.metrics import ExecutorMetrics
from weir_executor.model_files import ModelFiles, read_model_files
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
        watch = EngineWatch(
            engine,
            fanout,
            metrics,
            chassis.clock,
            hang_seconds=settings.hang_seconds,
            show_serving=partial(_show_serving, chassis.health, settings.model),
        )
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


def _show_serving(health: Health, model: str, serving: bool) -> None:
    for name in (SERVICE_NAME, model_name(model), PROCESS):
        health.set(name, serving)


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
    if role is Role.PREFILL and not engine.info.hands_off:
        raise SettingsError("WEIR_EXECUTOR_ROLE: prefill, and the engine cannot hand its blocks over")
    return role


def _handoff_table(engine: Engine, settings: ExecutorSettings, chassis: Chassis) -> HandoffTable:
    return HandoffTable(
        chassis.leases,
        chassis.random,
        namespaces=Namespaces(engine.info),
        lease_seconds=settings.handoff_lease_seconds,
        release_held=engine.release_held,
        state_format=engine.info.handoff_format,
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
    info = engine.info
    if not settings.kvstore_address or not (info.transfers_blocks or info.takes_prefixes):
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
    copier = await asyncio.to_thread(load_copier)
    transport: BlockTransport = ArenaTransport(channel, chassis.clock, copier)
    if len(info.shards) > 1:
        transport = ShardedTransport(transport, info.shards)
    transfer = KvTransfer(transport, engine, limits, metrics=metrics, clock=chassis.clock, random=chassis.random)
    stack.push_async_callback(transfer.close)
    return transfer


SERVICE: Final = ServiceDefinition("executor", ExecutorSettings, build, unbounded=_UNBOUNDED)
