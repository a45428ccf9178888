"""An `Engine` around a `Worker`: checks what is asked, and passes it through the door to the step loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from weir_chassis.errors import NotFound
from weir_executor.adapters.config import AdapterConfig
from weir_executor.engine import AdapterInfo, Deliver, EngineInfo, EngineLoad, RequestState, Wants
from weir_executor.guided.guide import GuideState
from weir_executor.paged.adapters import Adapters, NoAdapters
from weir_executor.paged.census import request_state
from weir_executor.paged.guides import start_guides
from weir_executor.paged.quota import check_quota
from weir_executor.paged.scheduler import SchedulerLimits
from weir_executor.paged.sequence import LiveRequest
from weir_executor.paged.speculation.drafter import MAX_DRAFT_TOKENS, Drafter
from weir_executor.paged.step_loop import LoopOptions, StepLoop
from weir_executor.paged.worker import Worker
from weir_executor.request import GenerationRequest, PoolingKind
from weir_executor.request_checks import check_request


class SteppedEngine:
    """See `Engine`. Everything here may be called on any thread but the loop's own."""

    def __init__(
        self,
        info: EngineInfo,
        limits: SchedulerLimits,
        worker: Worker,
        options: LoopOptions,
        *,
        adapters: Adapters | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        drafter = drafter or Drafter()
        self._info = replace(info, speculation_modes=drafter.modes, max_draft_tokens=MAX_DRAFT_TOKENS)
        self._limits, self._options = limits, options
        self._adapters: Adapters = adapters or NoAdapters()
        self._loop = StepLoop(self._info, limits, worker, options, drafter)
        self._door, self._scheduler = self._loop.door, self._loop.scheduler

    @property
    def info(self) -> EngineInfo:
        return self._info

    def start(self, deliver: Deliver, wants: Wants | None = None) -> None:
        self._loop.start(deliver, wants)

    def submit(self, request: GenerationRequest) -> None:
        check_request(request, self._info)
        check_quota(request, self._limits.tenants.of(request.tenant), self._info)
        stop_token_ids = self._stop_token_ids(request)
        guides = start_guides(request, stop_token_ids)
        if request.adapter and request.adapter not in self._adapters:
            raise NotFound(request.adapter, f"adapter {request.adapter!r} is not loaded here")
        self._door.enter(request.key, partial(self._new_live, request, stop_token_ids, guides))

    def abort(self, key: int, output_index: int | None = None) -> None:
        self._door.abort(key, output_index)

    def cached_prefix_blocks(self, block_hashes: Sequence[bytes]) -> int:
        return len(self._scheduler.pool.match(block_hashes))

    def read_held(self, key: int, first: int, count: int) -> Sequence[bytes] | None:
        return self._loop.held_reads.read(key, first, count)

    def release_held(self, key: int) -> None:
        self._door.release(key)

    def load_adapter(
        self, name: str, directory: Path, config: AdapterConfig, note: Callable[[int, int], None]
    ) -> AdapterInfo:
        return self._adapters.load(name, directory, config, note)

    def unload_adapter(self, name: str) -> None:
        users = [live.key for live in self._door.lives() if live.request.adapter == name]
        assert not users, f"adapter {name!r} is used by requests {users}"
        self._adapters.unload(name)

    def load(self) -> EngineLoad:
        return self._door.load()

    def requests(self) -> Sequence[RequestState]:
        lives, now = self._door.lives(), self._options.clock()
        return [request_state(live, self._scheduler, now) for live in lives]

    def check_health(self) -> None:
        if (error := self._door.error) is not None:
            raise error

    def close(self) -> None:
        self._loop.close()

    def _stop_token_ids(self, request: GenerationRequest) -> frozenset[int]:
        return request.stop_token_ids | (frozenset() if request.ignore_eos else self._info.eos_token_ids)

    def _new_live(
        self, request: GenerationRequest, stop_token_ids: frozenset[int], guides: list[GuideState], arrival: int
    ) -> LiveRequest:
        has_root = bool(request.block_hashes) or (
            len(request.token_ids) < self._info.block_size and bool(request.cache_scope)
        )
        takes_blocks = request.pooling is None or request.pooling.kind is not PoolingKind.MEAN
        stored = request.stored_prefix if takes_blocks else None
        return LiveRequest(
            request=replace(request, stored_prefix=None),  # payloads are large: they go once they are in the pool
            arrival=arrival,
            stop_token_ids=stop_token_ids,
            shares_blocks=has_root and takes_blocks and self._options.prefix_cache,
            submitted_at=self._options.clock(),
            stored_blocks=list(stored.blocks) if stored else [],
            first_stored_block=stored.first_block if stored else 0,
            guides=guides,
        )
