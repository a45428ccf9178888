"""Where the fakes are in `tensorrt_llm`: by the dotted names of what they stand for."""

from __future__ import annotations

from typing import Any

from fakes.trtllm import connector, fabric, llm, params, results

FAKES: dict[str, Any] = {
    "tensorrt_llm.LLM": llm.LLM,
    "tensorrt_llm.LLM.generate_async": llm.LLM.generate_async,
    "tensorrt_llm.LLM.get_stats_async": llm.LLM.get_stats_async,
    "tensorrt_llm.LLM.get_kv_cache_events_async": llm.LLM.get_kv_cache_events_async,
    "tensorrt_llm.LLM.shutdown": llm.LLM.shutdown,
    "tensorrt_llm.SamplingParams": params.SamplingParams,
    "tensorrt_llm.executor.request.LoRARequest": params.LoRARequest,
    "tensorrt_llm.executor.utils": results,
    "tensorrt_llm.executor.result": results,
    "tensorrt_llm.llmapi": params,
    "tensorrt_llm.llmapi.llm_args": params,
    "tensorrt_llm.llmapi.disagg_utils": fabric,
} | {
    f"tensorrt_llm.llmapi.{kind.__name__}": kind
    for kind in (
        params.GuidedDecodingParams,
        params.KvCacheConfig,
        params.SchedulerConfig,
        params.CudaGraphConfig,
        params.LoraConfig,
        params.DisaggregatedParams,
        params.CacheTransceiverConfig,
        params.KvCacheConnectorConfig,
        params.KvCacheRetentionConfig,
    )
}
CONNECTORS = "tensorrt_llm._torch.pyexecutor.connectors.kv_cache_connector"
for kind in (connector.KvCacheConnectorScheduler, connector.KvCacheConnectorWorker):
    FAKES |= {f"{CONNECTORS}.{kind.__name__}.{name}": getattr(kind, name) for name in dir(kind) if name[0] != "_"}
FAKES |= {
    f"{CONNECTORS}.RequestData": connector.RequestData,
    f"{CONNECTORS}.SchedulerOutput": connector.SchedulerOutput,
    "tensorrt_llm.mpi_rank": lambda: 0,
    "tensorrt_llm.inputs.utils": connector,
}


def find(name: str) -> Any:
    """As `surface.find_name`. Raises AttributeError."""
    if name not in FAKES:
        raise AttributeError(name)
    return FAKES[name]
