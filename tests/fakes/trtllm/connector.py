"""`tensorrt_llm._torch.pyexecutor…kv_cache_connector`: the flat contract of 1.2 to 1.4.0rc1, which newer ones keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from weir_executor.trtllm.library import ConnectorLibrary


@dataclass
class RequestData:
    request_id: int
    new_tokens: list[int]
    new_block_ids: list[int]
    computed_position: int
    num_scheduled_tokens: int


@dataclass
class NewerRequestData(RequestData):
    block_hashes: list[int] = field(default_factory=list)
    priorities: list[int] | None = None
    cache_salt: str | None = None
    new_block_ids_by_layer_group: list[list[int]] = field(default_factory=list)


@dataclass
class SchedulerOutput:
    new_requests: list[RequestData] = field(default_factory=list)
    cached_requests: list[RequestData] = field(default_factory=list)


class KvCacheConnectorWorker(ABC):
    def __init__(self, llm_args: Any) -> None:
        self._llm_args = llm_args
        self._metadata: object = None
        super().__init__()

    def bind_connector_meta(self, metadata: object) -> None:
        self._metadata = metadata

    def get_connector_meta(self) -> object:
        return self._metadata

    def _clear_connector_meta(self) -> None:
        self._metadata = None

    def register_forward_pass_callable(self) -> Callable[[], None] | None:
        return None

    @abstractmethod
    def register_kv_caches(self, kv_cache_tensor: Any) -> None: ...

    @abstractmethod
    def start_load_kv(self, stream: Any) -> None: ...

    @abstractmethod
    def wait_for_layer_load(self, layer_idx: int, stream: Any) -> None: ...

    @abstractmethod
    def save_kv_layer(self, layer_idx: int, stream: Any) -> None: ...

    @abstractmethod
    def wait_for_save(self, stream: Any) -> None: ...

    @abstractmethod
    def get_finished(
        self, finished_gen_req_ids: list[int], started_loading_req_ids: list[int]
    ) -> tuple[list[int], list[int]]: ...


class KvCacheConnectorScheduler(ABC):
    def __init__(self, llm_args: Any) -> None:
        self._llm_args = llm_args
        super().__init__()

    @abstractmethod
    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> object: ...

    @abstractmethod
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]: ...

    @abstractmethod
    def request_finished(self, request: Any, cache_block_ids: list[int]) -> bool: ...

    @abstractmethod
    def update_state_after_alloc(self, request: Any, block_ids: list[int]) -> None: ...


class LlmRequest:
    """As a connector sees it: of a salt older versions bind only its number."""

    def __init__(self, request_id: int, tokens: list[int], salt: str | None, *, tells_salt: bool) -> None:
        self.request_id, self._tokens = request_id, tokens
        self.cache_salt_id = None if salt is None else get_cache_salt_id(salt)
        if tells_salt:
            self.cache_salt = salt

    def get_tokens(self, beam: int) -> list[int]:
        assert beam == 0
        return self._tokens


def get_cache_salt_id(cache_salt: str) -> int:
    return int.from_bytes(blake2b(cache_salt.encode(), digest_size=8).digest(), "little")


def connector_library(rank: Callable[[], int], *, has_salt_id: bool = True) -> ConnectorLibrary:
    """What `load_connector_library` finds, of fakes."""
    salt_id = get_cache_salt_id if has_salt_id else None
    return ConnectorLibrary(KvCacheConnectorScheduler, KvCacheConnectorWorker, rank, salt_id)
