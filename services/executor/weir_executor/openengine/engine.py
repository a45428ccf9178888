"""`Engine` on a server of `openengine.v1`: the waist's calls, from any thread, to an event loop of the engine's own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random, SystemRandom
from typing import Final

import grpc

from weir_chassis.errors import WeirError
from weir_executor.adapters.config import AdapterConfig
from weir_executor.engine import AdapterInfo, Deliver, EngineInfo, EngineLoad, Wants
from weir_executor.foreign.block_names import BlockNames
from weir_executor.foreign.engine import ForeignEngine
from weir_executor.foreign.live import begin
from weir_executor.foreign.load_report import load
from weir_executor.foreign.loop_thread import LoopThread
from weir_executor.foreign.outlet import Outlet
from weir_executor.openengine.capabilities import Capabilities
from weir_executor.openengine.config import OpenEngineConfig
from weir_executor.openengine.cursor import Cursor
from weir_executor.openengine.errors import from_status
from weir_executor.openengine.kv_events import EventTranslator
from weir_executor.openengine.link import Link, canary
from weir_executor.openengine.observer import Observer
from weir_executor.openengine.request import check_supported
from weir_executor.openengine.server import Server
from weir_executor.openengine.work import Work
from weir_executor.request import GenerationRequest
from weir_executor.request_checks import check_request

_log = logging.getLogger(__name__)
_WIND_UP_SECONDS, _LOOP_SECONDS = 10.0, 5.0
_ADAPTER_SECONDS: Final = 300.0


class OpenEngine(ForeignEngine):
    """See `Engine`. `server` was connected on `loop`, and has said that it is `can`; `info` follows from that."""

    _work: Work

    def __init__(
        self, server: Server, can: Capabilities, config: OpenEngineConfig, info: EngineInfo, loop: LoopThread
    ) -> None:
        super().__init__(info, config.max_waiting, loop)
        self._server, self._can, self._config = server, can, config
        self._run_id = f"weir-{SystemRandom().getrandbits(48):012x}"
        self._adapters: dict[str, tuple[int, str]] = {}
        only_scope = None if can.cache_salt else config.plain_scope
        self._observer = Observer(server, EventTranslator(info.block_size, only_scope))
        self._outlet = Outlet(_no_wait, self._show_load)
        self._link = Link(
            server,
            can,
            config.model,
            prove=self._prove,
            on_lost=self._lost,
            on_back=self._load_adapters_again,
            random=Random(SystemRandom().getrandbits(64)),
        )
        self._work = Work(
            server,
            can,
            config,
            info,
            lives=self._lives,
            outlet=self._outlet,
            count_cached=self.cached_prefix_blocks,
            note_request=self._observer.translator.note_request,
            suspect=self._link.suspect,
            run_id=self._run_id,
        )
        self._load = self._make_load()

    def start(self, deliver: Deliver, wants: Wants | None = None) -> None:  # noqa: ARG002
        """`wants` is never asked: the server's blocks stay there."""
        self._outlet.deliver = deliver
        for task in (self._link.run(), self._observer.run(self._outlet.soon, self._outlet.events), self._work.watch()):
            self._loop.run(self._guard(task))

    def submit(self, request: GenerationRequest) -> None:
        check_request(request, self._info)
        check_supported(request, self._can, self._config)
        self._check_adapter(request)
        if (away := self._link.away) is not None:
            raise type(away)(away.message)
        live = begin(request, lambda index: self._cursor(request, index), time.monotonic())
        self._lives.enter(live)
        self._loop.call(self._work.enter, live)

    def read_held(self, key: int, first: int, count: int) -> Sequence[bytes] | None:  # noqa: ARG002
        """The contract hands prompts over between servers of one kind, in their own way."""
        return None

    def release_held(self, key: int) -> None:
        pass

    def load_adapter(
        self, name: str, directory: Path, config: AdapterConfig, note: Callable[[int, int], None]
    ) -> AdapterInfo:
        """The server reads the files too, under the same path. Ids are never used twice: they are of the contents."""
        fingerprint, num_weights = self._read_adapter(name, directory, note)
        number, where = 1 + int(fingerprint[:15], 16), str(directory.absolute())
        call = self._server.load_adapter(number, name, where, _ADAPTER_SECONDS)
        try:
            self._loop.run(call).result(_ADAPTER_SECONDS + _LOOP_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise from_status(error.code(), error.details() or "") from error
        self._adapters[name] = (number, where)
        return AdapterInfo(name, config.rank, fingerprint, num_weights)

    def unload_adapter(self, name: str) -> None:
        """A server that is away has none any more."""
        del self._adapters[name]
        with suppress(grpc.aio.AioRpcError, TimeoutError):
            self._loop.run(self._server.unload_adapter(name)).result(self._config.call_seconds + _LOOP_SECONDS)

    def load(self) -> EngineLoad:
        return replace(self._load, away=self._link.away is not None)

    def close(self) -> None:
        if not self._lives.close():
            return
        with suppress(TimeoutError):
            self._loop.run(self._work.wind_up()).result(_WIND_UP_SECONDS)
        with suppress(TimeoutError):
            self._loop.run(self._server.close()).result(_LOOP_SECONDS)
        if not self._loop.close(_LOOP_SECONDS):
            _log.error("the engine's loop does not end; it is left behind")

    @property
    def _names(self) -> BlockNames:
        return self._observer.translator.names

    @property
    def _adapter_names(self) -> Collection[str]:
        return self._adapters

    def _cursor(self, request: GenerationRequest, output_index: int) -> Cursor:
        eos = frozenset() if request.ignore_eos else self._info.eos_token_ids
        return Cursor(
            stop_token_ids=request.stop_token_ids | eos,
            min_tokens=request.min_tokens,
            max_tokens=request.max_tokens,
            resumed=len(request.resumed.get(output_index, ())),
            top=request.sampling.top_logprobs,
            vocab_size=self._info.vocab_size,
        )

    async def _prove(self) -> None:
        token_id = min(self._info.eos_token_ids)
        request_id = f"{self._run_id}-proof-{time.monotonic_ns()}"
        await canary(self._server, self._config.model, token_id, request_id, self._config.stall_seconds)

    def _lost(self, error: WeirError) -> None:
        """All that it had is lost with it; whoever waits is told, and goes elsewhere."""
        self._work.end_all(error)
        self._outlet.events(self._observer.forget())

    async def _load_adapters_again(self) -> None:
        for name, (number, where) in list(self._adapters.items()):
            await self._server.load_adapter(number, name, where, _ADAPTER_SECONDS)

    async def _guard(self, task: asyncio.Future[None] | object) -> None:
        """What must never end is the engine's end when it does."""
        try:
            await task  # type: ignore[misc]
        except Exception as error:
            _log.exception("a task of the engine failed")
            if self._lives.fail(error):
                self._work.end_all(from_status(grpc.StatusCode.UNAVAILABLE, ""))

    def _make_load(self) -> EngineLoad:
        seen = replace(
            self._observer.iteration,
            prefill_tokens=self._work.prefill_tokens,
            decode_tokens=self._work.decode_tokens,
        )
        return load(
            seen,
            self._work.running,
            self._work.waiting,
            total_blocks=self._info.num_blocks,
            cached_blocks=len(self._observer.translator.names),
            progress=self._outlet.progress,
            steps=self._outlet.steps,
            chunk_tokens=self._can.max_batched_tokens or self._config.max_batched_tokens,
            prefill_token_seconds=None,
        )


async def _no_wait() -> None:
    """Events come by a stream of their own; nobody can say when they are all there."""
