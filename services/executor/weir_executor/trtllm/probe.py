"""What the installed TensorRT-LLM can do, by its signatures and fields; a version that nobody has read is refused."""

from __future__ import annotations

from dataclasses import dataclass

from weir_executor.trtllm.library import Library
from weir_executor.trtllm.surface import field_defaults, parameters, surface


class UnknownVersionError(RuntimeError):
    """It may work, and nobody has looked."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Each is used where it is there."""

    priority: bool  # of a request, and a queue that heeds it
    trace_headers: bool
    engine_dead_error: bool  # without it a dead rank leaves waiting iterators hanging
    health_check: bool
    disk_cache: bool
    prompt_ignore_length: bool  # else penalties count the prompt's tokens too


def probe(library: Library, *, allow_unknown: bool) -> Capabilities:
    """Raises UnknownVersionError unless that is allowed."""
    known = surface().versions
    if not allow_unknown and not library.version.startswith(tuple(f"{version}." for version in known)):
        raise UnknownVersionError(
            f"TensorRT-LLM {library.version} is none of {', '.join(known)}; "
            "WEIR_EXECUTOR_TRTLLM_ALLOW_UNKNOWN_VERSION=true tries it all the same"
        )
    submits = parameters(library.LLM.generate_async)
    return Capabilities(
        priority="priority" in submits and "waiting_queue_policy" in field_defaults(library.SchedulerConfig),
        trace_headers="trace_headers" in submits,
        engine_dead_error=library.EngineDeadError is not None,
        health_check=hasattr(library.LLM, "_check_health"),
        disk_cache="disk_cache_size" in field_defaults(library.KvCacheConfig),
        prompt_ignore_length="prompt_ignore_length" in field_defaults(library.SamplingParams),
    )
