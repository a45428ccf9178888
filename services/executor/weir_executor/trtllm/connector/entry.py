"""What the engine imports in each of its processes: `KvCacheConnectorConfig` names this module and these two classes.

They are made when they are asked for, because their bases are the engine's: each hook is one line to what does it.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from random import SystemRandom
from threading import Event, Thread
from typing import Any, Final

from weir_chassis.clock import SystemClock
from weir_executor.kv_transfer.shards import shard_names
from weir_executor.trtllm.connector.area_view import AreaView
from weir_executor.trtllm.connector.check import check_arguments
from weir_executor.trtllm.connector.layout import ShardLayout
from weir_executor.trtllm.connector.leader import Leader
from weir_executor.trtllm.connector.plan import StepPlan
from weir_executor.trtllm.connector.store_link import StoreLink, store_link
from weir_executor.trtllm.connector.told import MODULE, SCHEDULER, WORKER, Told, read_told
from weir_executor.trtllm.connector.worker import RankWorker
from weir_executor.trtllm.library import ConnectorLibrary, load_connector_library

# Copied in while the batch waits: a few milliseconds at most. More is loaded beside it.
SYNC_BLOCKS: Final = 8
# One loads while another hands on what is saved.
_THREADS: Final = 2
# How often it is looked whether copies out are there, besides the engine's own iterations.
_LOOK_SECONDS: Final = 0.05
_ARGUMENTS: Final = (
    "tensor_parallel_size", "gpus_per_node", "pipeline_parallel_size", "context_parallel_size", "max_beam_width",
    "speculative_config", "cache_transceiver_config", "enable_attention_dp", "kv_cache_config",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in (SCHEDULER, WORKER):
        return _classes()[name]
    raise AttributeError(f"module {MODULE} has no attribute {name}")


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank's half, and what ends the threads that it has."""

    worker: RankWorker
    close: Callable[[], None]


@cache
def _classes() -> Mapping[str, type]:
    library = load_connector_library()
    return {
        SCHEDULER: scheduler_class(library, lambda llm_args: make_leader(llm_args, library)),
        WORKER: worker_class(library, make_rank),
    }


def make_leader(llm_args: Any, library: ConnectorLibrary) -> Leader:
    """Raises Unsupported for an engine that is not as it was checked to be."""
    told = _read_told(llm_args)
    return Leader(AreaView(told.area, library.salt_id), block_size=told.block_size, sync_blocks=SYNC_BLOCKS)


def make_rank(llm_args: Any, number: int) -> Rank:
    """Raises Unsupported as `make_leader`."""
    told, threads = _read_told(llm_args), ThreadPoolExecutor(_THREADS, "weir-connector")
    links, ended = list[StoreLink](), Event()

    def connect(layout: ShardLayout) -> StoreLink:
        shard = shard_names(llm_args.tensor_parallel_size)[number]
        links.append(store_link(told, layout, shard, clock=SystemClock(), random=SystemRandom()))
        return links[-1]

    def look() -> None:
        while not ended.wait(_LOOK_SECONDS):
            worker.end_saves()

    def close() -> None:
        ended.set()
        threads.shutdown(wait=False, cancel_futures=True)
        for link in links:
            link.close()

    worker = RankWorker(
        AreaView(told.area),
        rank=number,
        ranks=llm_args.tensor_parallel_size,
        kv_dtype=told.kv_dtype,
        max_copying_bytes=told.queue_bytes,
        connect=connect,
        run=threads.submit,
        clock=SystemClock(),
    )
    Thread(target=look, name="weir-connector-saves", daemon=True).start()
    return Rank(worker, close)


def scheduler_class(library: ConnectorLibrary, make: Callable[[Any], Leader]) -> type:
    class WeirScheduler(library.Scheduler):  # type: ignore[misc,name-defined]  # found out when it runs
        """On rank 0."""

        def __init__(self, llm_args: Any) -> None:
            super().__init__(llm_args)
            self.leader = make(llm_args)

        def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
            return self.leader.get_num_new_matched_tokens(request, num_computed_tokens)

        def update_state_after_alloc(self, request: Any, block_ids: Sequence[int]) -> None:
            self.leader.update_state_after_alloc(request, block_ids)

        def build_connector_meta(self, scheduler_output: Any) -> StepPlan:
            return self.leader.build_connector_meta(scheduler_output)

        def request_finished(self, request: Any, cache_block_ids: Sequence[int]) -> bool:
            return self.leader.request_finished(request, cache_block_ids)

        def request_reset(self, request: Any) -> None:
            self.leader.request_reset(request)

        def cancel_load(self, request: Any, start: int, end: int) -> None:
            self.leader.cancel_load(request, start, end)

    return WeirScheduler


def worker_class(library: ConnectorLibrary, make: Callable[[Any, int], Rank]) -> type:
    class WeirWorker(library.Worker):  # type: ignore[misc,name-defined]  # found out when it runs
        """On every rank."""

        def __init__(self, llm_args: Any) -> None:
            super().__init__(llm_args)
            rank = make(llm_args, library.rank())
            self.worker, self._close = rank.worker, rank.close
            # The engine tells no connector that it ends.
            atexit.register(self.close)

        def close(self) -> None:
            """Twice is once."""
            atexit.unregister(self.close)
            self._close()

        def register_kv_caches(self, kv_cache_tensor: Any) -> None:
            self.worker.register_kv_caches(kv_cache_tensor)

        def register_forward_pass_callable(self) -> Callable[[], None]:
            return _nothing

        def start_load_kv(self, stream: Any) -> None:
            self.worker.start_load_kv(self._plan(), stream)

        def wait_for_layer_load(self, layer_idx: int, stream: Any) -> None:
            """What is loaded in line is in line before the first layer."""

        def save_kv_layer(self, layer_idx: int, stream: Any) -> None:
            """Blocks are saved whole."""

        def wait_for_save(self, stream: Any) -> None:
            self.worker.wait_for_save(self._plan(), stream)

        def get_finished(
            self, finished_gen_req_ids: list[int], started_loading_req_ids: list[int]
        ) -> tuple[list[int], list[int]]:
            return self.worker.get_finished(finished_gen_req_ids, started_loading_req_ids)

        def _plan(self) -> StepPlan:
            return self.get_connector_meta() or StepPlan()

    return WeirWorker


def _read_told(llm_args: Any) -> Told:
    told = read_told(os.environ)
    check_arguments({name: getattr(llm_args, name, None) for name in _ARGUMENTS}, told.block_size)
    return told


def _nothing() -> None:
    """Copies wait for an event that is recorded behind the whole step."""
