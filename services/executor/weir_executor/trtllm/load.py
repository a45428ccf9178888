"""From a configuration to a running engine: import, probe, construct, warm up. Each step may take minutes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from weir_executor.engine import EngineInfo
from weir_executor.foreign.eos import read_eos
from weir_executor.foreign.load_report import Iteration
from weir_executor.foreign.loop_thread import LoopThread
from weir_executor.kv_transfer.shards import shard_names
from weir_executor.trtllm import stats
from weir_executor.trtllm.config import TrtConfig, llm_arguments
from weir_executor.trtllm.connector.area import Area
from weir_executor.trtllm.connector.check import check_model
from weir_executor.trtllm.connector.layout import ShardLayout
from weir_executor.trtllm.connector.staging import Staging
from weir_executor.trtllm.connector.told import Told, telling
from weir_executor.trtllm.engine import TrtEngine
from weir_executor.trtllm.handover import format_of
from weir_executor.trtllm.library import Library, load_library
from weir_executor.trtllm.observer import what_is_told
from weir_executor.trtllm.probe import probe

_log = logging.getLogger(__name__)
_MAX_N, _MAX_TOP_LOGPROBS = 16, 20
_CANARY_SECONDS, _STATS_SECONDS, _LOOP_SECONDS = 600.0, 5.0, 5.0
# Its prompt is nobody's, and must meet nobody's blocks.
_CANARY_SALT = "weir-canary"


def load_engine(config: TrtConfig, library: Library | None = None, *, end_process: Callable[[], object]) -> TrtEngine:
    """`end_process`: for an engine that does not end.

    Raises ImportError where it is not installed, UnknownVersionError, Unsupported, ValueError, RuntimeError."""
    library = library or load_library()
    with_connector = config.connector is not None
    can = probe(library, allow_unknown=config.allow_unknown_version, with_connector=with_connector)
    model = _read_json(config, "config.json")
    max_model_len = config.max_model_len or int(model["max_position_embeddings"])
    arguments = llm_arguments(config, library, can, max_model_len)
    if config.connector is not None:
        check_model(model)
    with ExitStack() as undo:
        area = _open_area(config, undo)
        _log.info("TensorRT-LLM %s is loading %s", library.version, config.model_dir)
        llm = _construct(library, arguments, config, area)
        undo.callback(llm.shutdown)
        loop = LoopThread("trtllm-engine")
        undo.callback(loop.close, _LOOP_SECONDS)
        iteration = _warm_up(llm, library, read_eos(config.model_dir, model), config, loop)
        info = _info(config, model, max_model_len, iteration.total_blocks or _capacity(llm), library.version)
        if area is not None:
            info = _with_shards(info, area.layout(config.tensor_parallel), config.tensor_parallel)
        undo.pop_all()
    _log.info("the engine is ready: %d blocks of %d tokens", info.num_blocks, info.block_size)
    staging = None if area is None else Staging(area)
    return TrtEngine(llm, library, can, config, info, loop=loop, end_process=end_process, staging=staging)


def _open_area(config: TrtConfig, undo: ExitStack) -> Area | None:
    """Raises OSError."""
    if config.connector is None:
        return None
    area = Area(config.connector.staging_dir, config.connector.staging_bytes)
    undo.callback(area.close)
    return area


def _construct(library: Library, arguments: Mapping[str, Any], config: TrtConfig, area: Area | None) -> Any:
    """Its processes are started meanwhile, and told what their connectors need."""
    if config.connector is None or area is None:
        return library.LLM(**arguments)
    told = Told(
        kvstore_address=config.connector.kvstore_address,
        area=area.path,
        block_size=config.block_size,
        kv_dtype=config.kv_dtype,
        queue_bytes=config.connector.queue_bytes,
        bytes_per_second=config.connector.bytes_per_second,
    )
    with telling(told):
        return library.LLM(**arguments)


def _with_shards(info: EngineInfo, layout: ShardLayout, ranks: int) -> EngineInfo:
    """What a block's bytes are is known once the engine has its pools."""
    return replace(
        info,
        block_bytes=layout.block_bytes * ranks,
        kv_dtype=layout.kv_dtype,
        kv_layout=layout.kv_layout,
        takes_prefixes=True,
        shards=tuple(shard_names(ranks)),
    )


def _info(config: TrtConfig, model: Mapping[str, Any], max_model_len: int, num_blocks: int, version: str) -> EngineInfo:
    return EngineInfo(
        engine="trtllm",
        vocab_size=int(model["vocab_size"]),
        max_model_len=max_model_len,
        block_size=config.block_size,
        num_blocks=num_blocks or -(-max_model_len // config.block_size),
        max_num_seqs=config.max_num_seqs,
        max_n=_MAX_N,
        max_top_logprobs=_MAX_TOP_LOGPROBS,
        eos_token_ids=read_eos(config.model_dir, model),
        block_bytes=0,
        kv_dtype=config.kv_dtype,
        kv_layout="trtllm",
        transfers_blocks=False,
        takes_guides=config.guided_backend is not None,
        max_adapters=config.max_adapters,
        max_adapter_rank=config.max_adapter_rank if config.max_adapters else 0,
        compute=f"TensorRT-LLM {version}, {config.dtype}, kv {config.kv_dtype}, tp {config.tensor_parallel}",
        # Its generators count steps, and not places.
        draws_anew=True,
        hands_off=config.transceiver is not None and config.transceiver.hands_off,
        handoff_format=format_of(version) if config.transceiver is not None else "",
    )


def _warm_up(llm: Any, library: Library, eos: frozenset[int], config: TrtConfig, loop: LoopThread) -> Iteration:
    """One small request through the whole engine: it is ready when that comes back, and tells its size then.

    On the loop that all others come by: some versions tell statistics and events to the first request's loop only.
    """
    return loop.run(_canary(llm, library, min(eos), config)).result(_CANARY_SECONDS)


async def _canary(llm: Any, library: Library, end_id: int, config: TrtConfig) -> Iteration:
    sampling = library.SamplingParams(
        max_tokens=2, end_id=end_id, pad_id=end_id, ignore_eos=True, top_k=1, temperature=1.0, detokenize=False
    )
    prompt = [end_id] * (config.block_size + 1)
    result = llm.generate_async(inputs=prompt, sampling_params=sampling, streaming=False, cache_salt=_CANARY_SALT)
    async with asyncio.timeout(_CANARY_SECONDS):
        await result
    iteration = Iteration()
    async for told in what_is_told(llm.get_stats_async(timeout=_STATS_SECONDS)):
        iteration = stats.add(iteration, told)
        if iteration.total_blocks:
            break  # more may take as long as the time limit
    return iteration


def _capacity(llm: Any) -> int:
    """Newer versions tell it without a request."""
    ask = getattr(llm, "get_kv_cache_capacity", None)
    if ask is None:
        return 0
    told = ask()
    return int(told.get("maxNumBlocks", 0)) if isinstance(told, Mapping) else 0


def _read_json(config: TrtConfig, name: str) -> Mapping[str, Any]:
    path = config.model_dir / name
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value
