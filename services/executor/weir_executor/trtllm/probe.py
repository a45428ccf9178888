"""What the installed TensorRT-LLM can do, by its signatures and fields; a version that nobody has read is refused."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from weir_executor.trtllm.library import Library
from weir_executor.trtllm.surface import field_defaults, missing, parameters, surface

_log = logging.getLogger(__name__)
_MAX_TOLD: Final = 5
_GLOBAL_ID: Final = "tensorrt_llm.llmapi.disagg_utils.get_global_disagg_request_id"
_PROCESSES: Final = 64  # six bits
# Of TensorRT-LLM: transfers may be cancelled while they are under way.
_INFLIGHT_CANCEL: Final = "TRTLLM_DISAGG_ENABLE_INFLIGHT_CANCEL"


class UnknownVersionError(RuntimeError):
    """It may work, and nobody has looked."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Each is used where it is there."""

    priority: bool  # of a request, and a queue that heeds it
    retention: bool  # how long a request's blocks are kept
    engine_dead_error: bool  # without it a dead rank leaves waiting iterators hanging
    health_check: bool
    disk_cache: bool
    manager_v2: bool  # another keeper of blocks, whose requests may begin anew
    prompt_ignore_length: bool  # else penalties count the prompt's tokens too
    transfer_timeout: bool  # for blocks that nobody fetches; else they wait for ever
    transceiver_runtime: bool
    cancels_transfers: bool  # an abort is safe while blocks are on the way; where an operator says so
    # A number for a prompt that is handed over, the same on both sides and no other's; None: the engine's own do.
    make_disaggregated_id: Callable[[int], int] | None
    handover_fields: frozenset[str]  # of DisaggregatedParams


def probe(library: Library, *, allow_unknown: bool, with_connector: bool = False) -> Capabilities:
    """Raises UnknownVersionError unless that is allowed. `with_connector`: its names are looked for too."""
    unknown = list(_unknown(library, with_connector=with_connector))
    if unknown and not allow_unknown:
        raise UnknownVersionError(
            f"TensorRT-LLM {library.version}: {'; '.join(unknown[:_MAX_TOLD])}. "
            "WEIR_EXECUTOR_TRTLLM_ALLOW_UNKNOWN_VERSION=true tries it all the same"
        )
    for line in unknown:
        _log.warning("TensorRT-LLM %s: %s", library.version, line)
    submits = parameters(library.LLM.generate_async)
    transceiver = field_defaults(library.CacheTransceiverConfig)
    handover = frozenset(field_defaults(library.DisaggregatedParams))
    return Capabilities(
        priority="priority" in submits and "waiting_queue_policy" in field_defaults(library.SchedulerConfig),
        retention=library.KvCacheRetentionConfig is not None and "kv_cache_retention_config" in submits,
        engine_dead_error=library.EngineDeadError is not None,
        health_check=hasattr(library.LLM, "_check_health"),
        manager_v2="use_kv_cache_manager_v2" in field_defaults(library.KvCacheConfig),
        disk_cache="disk_cache_size" in field_defaults(library.KvCacheConfig),
        prompt_ignore_length="prompt_ignore_length" in field_defaults(library.SamplingParams),
        transfer_timeout="kv_transfer_timeout_ms" in transceiver,
        transceiver_runtime="transceiver_runtime" in transceiver,
        cancels_transfers=os.environ.get(_INFLIGHT_CANCEL) == "1",
        make_disaggregated_id=_make_id(library) if "disagg_request_id" in handover else None,
        handover_fields=handover,
    )


def _unknown(library: Library, *, with_connector: bool) -> Iterator[str]:
    """Why nobody knows how it behaves: a version that was not read, or one that lacks what the others had."""
    known = surface().versions
    if not library.version.startswith(tuple(f"{version}." for version in known)):
        yield f"it is none of {', '.join(known)}"
    for line in missing(library.find):
        if with_connector or "connector" not in line.lower():
            yield line


def _make_id(library: Library) -> Callable[[int], int] | None:
    """The engine's own numbers, whose bits were cut otherwise in time: a machine, or a node and a process on it."""
    try:
        make = library.find(_GLOBAL_ID)
    except (ImportError, AttributeError):
        return None
    if "process_id" not in parameters(make):
        return lambda machine: int(make(machine))
    return lambda machine: int(make(*divmod(machine, _PROCESSES)))
