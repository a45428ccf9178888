"""What the waist's calls come to for every engine that schedules by itself."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from weir_chassis.errors import AlreadyExists, NotFound, Unsupported
from weir_executor.adapters.files import read_weights
from weir_executor.engine import EngineInfo, EngineLoad, RequestState
from weir_executor.foreign.block_names import BlockNames
from weir_executor.foreign.line import Line
from weir_executor.foreign.lives import Lives
from weir_executor.foreign.loop_thread import LoopThread
from weir_executor.request import GenerationRequest

# Of one adapter: a rank of 256 on the largest models.
_MAX_ADAPTER_BYTES: Final = 8 << 30


class ForeignEngine(ABC):
    """See `Engine`. A backend makes `_work` and `_load`, and adds the calls that are its own."""

    _work: Line
    _load: EngineLoad

    def __init__(self, info: EngineInfo, max_waiting: int, loop: LoopThread) -> None:
        self._info, self._loop = info, loop
        self._lives = Lives(max_waiting)

    @property
    @abstractmethod
    def _names(self) -> BlockNames:
        """Of the blocks that the engine has."""

    @property
    @abstractmethod
    def _adapter_names(self) -> Collection[str]:
        """Of those that are loaded."""

    @abstractmethod
    def _make_load(self) -> EngineLoad: ...

    @property
    def info(self) -> EngineInfo:
        return self._info

    def abort(self, key: int, output_index: int | None = None) -> None:
        if self._loop.is_current:  # whoever is being delivered to: what is under way is not said any more
            self._work.abort(key, output_index)
        else:
            self._loop.call(self._work.abort, key, output_index)

    def cached_prefix_blocks(self, block_hashes: Sequence[bytes]) -> int:
        return self._names.leading(block_hashes)

    def load(self) -> EngineLoad:
        return self._load

    def requests(self) -> Sequence[RequestState]:
        now = time.monotonic()
        return [live.state(now, live.begun_at is None, self._info.block_size) for live in self._lives.all()]

    def check_health(self) -> None:
        if self._lives.error is not None:
            raise self._lives.error

    def _check_adapter(self, request: GenerationRequest) -> None:
        """Raises NotFound."""
        if request.adapter and request.adapter not in self._adapter_names:
            raise NotFound(request.adapter, f"adapter {request.adapter!r} is not loaded here")

    def _read_adapter(self, name: str, directory: Path, note: Callable[[int, int], None]) -> tuple[str, int]:
        """Fingerprint and number of the files' weights, which are right. Raises Unsupported, AlreadyExists, and as
        `read_weights` does."""
        loaded, limit = self._adapter_names, self._info.max_adapters
        if len(loaded) >= limit:
            raise Unsupported(f"adapters: {len(loaded)} are loaded, the limit is {limit}")
        if name in loaded:
            raise AlreadyExists(name, f"an adapter {name!r} is loaded")
        weights, fingerprint = read_weights(directory, _MAX_ADAPTER_BYTES, note)
        return fingerprint, len(weights)

    def _show_load(self) -> None:
        self._load = self._make_load()
