"""The one module that imports TensorRT-LLM, when it is asked to: its names as one object.

What a version may lack is None here, and found out by looking, never by the version's number (`probe`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from weir_executor.trtllm.surface import find_name

# The newer first.
CONNECTOR_MODULES: Final = (
    "tensorrt_llm._torch.pyexecutor.connectors.kv_cache_connector",
    "tensorrt_llm._torch.pyexecutor.kv_cache_connector",
)


@dataclass(frozen=True, slots=True)
class Library:
    """Classes as they are published; `find` is for whoever needs another by its dotted name."""

    version: str
    LLM: Any
    SamplingParams: Any
    GuidedDecodingParams: Any
    KvCacheConfig: Any
    SchedulerConfig: Any
    CudaGraphConfig: Any
    LoraConfig: Any
    LoRARequest: Any
    DisaggregatedParams: Any
    CacheTransceiverConfig: Any
    KvCacheConnectorConfig: Any
    KvCacheRetentionConfig: Any  # None: versions that keep all blocks alike
    Logprob: Any
    RequestError: type[Exception]
    # Raised to whoever waits when a rank has died; None before there was such a thing.
    EngineDeadError: type[Exception] | None
    # [vocabulary] of float32, zero but at these token ids.
    make_bias: Callable[[int, Mapping[int, float]], Any]
    # From `decoding_type` and its fields; None: they are taken as they are.
    make_speculation: Callable[[dict[str, Any]], Any] | None
    find: Callable[[str], Any] = find_name


@dataclass(frozen=True, slots=True)
class ConnectorLibrary:
    """What a connector needs, in a process of the engine's."""

    Scheduler: Any
    Worker: Any
    rank: Callable[[], int]
    # A salt's number, for versions that tell a connector nothing else of it.
    salt_id: Callable[[str], int] | None


def load_library() -> Library:
    """Takes many seconds, and a CUDA device. Raises ImportError where it is not installed."""
    llmapi = "tensorrt_llm.llmapi"
    return Library(
        version=find_name("tensorrt_llm.__version__"),
        LLM=find_name("tensorrt_llm.LLM"),
        SamplingParams=find_name("tensorrt_llm.SamplingParams"),
        GuidedDecodingParams=find_name(f"{llmapi}.GuidedDecodingParams"),
        KvCacheConfig=find_name(f"{llmapi}.KvCacheConfig"),
        SchedulerConfig=find_name(f"{llmapi}.SchedulerConfig"),
        CudaGraphConfig=find_name(f"{llmapi}.CudaGraphConfig"),
        LoraConfig=find_name(f"{llmapi}.LoraConfig"),
        LoRARequest=find_name("tensorrt_llm.executor.request.LoRARequest"),
        DisaggregatedParams=find_name(f"{llmapi}.DisaggregatedParams"),
        CacheTransceiverConfig=find_name(f"{llmapi}.CacheTransceiverConfig"),
        KvCacheConnectorConfig=find_name(f"{llmapi}.KvCacheConnectorConfig"),
        KvCacheRetentionConfig=_optional(f"{llmapi}.KvCacheRetentionConfig"),
        Logprob=find_name("tensorrt_llm.executor.result.Logprob"),
        RequestError=find_name("tensorrt_llm.executor.utils.RequestError"),
        EngineDeadError=getattr(find_name("tensorrt_llm.executor.utils"), "EngineDeadError", None),
        make_bias=_bias,
        make_speculation=_optional(f"{llmapi}.llm_args.DecodingBaseConfig.from_dict"),
    )


def load_connector_library() -> ConnectorLibrary:
    """Raises ImportError, AttributeError."""
    module = _first(CONNECTOR_MODULES)
    return ConnectorLibrary(
        Scheduler=module.KvCacheConnectorScheduler,
        Worker=module.KvCacheConnectorWorker,
        rank=find_name("tensorrt_llm.mpi_rank"),
        salt_id=getattr(find_name("tensorrt_llm.inputs.utils"), "get_cache_salt_id", None),
    )


def _first(names: Sequence[str]) -> Any:
    """The first that is there."""
    for name in names[:-1]:
        try:
            return find_name(name)
        except (ImportError, AttributeError):
            continue
    return find_name(names[-1])


def _optional(name: str) -> Any:
    """None where it is not."""
    try:
        return find_name(name)
    except (ImportError, AttributeError):
        return None


def _bias(vocab_size: int, logit_bias: Mapping[int, float]) -> Any:
    import torch  # noqa: PLC0415  # there wherever TensorRT-LLM is

    bias = torch.zeros(vocab_size, dtype=torch.float32)
    bias[list(logit_bias)] = torch.tensor(list(logit_bias.values()), dtype=torch.float32)
    return bias
