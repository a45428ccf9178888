"""What the server tells by itself: its load, and events of its blocks. Used on the engine's loop only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import grpc

from weir_executor.foreign.load_report import Iteration
from weir_executor.openengine.kv_events import EventTranslator
from weir_executor.openengine.server import Server
from weir_executor.step_output import KvEvent

_log = logging.getLogger(__name__)
_LOAD_SECONDS: Final = 1.0
# Between two attempts at its events: without them requests go on, and prefixes are not known.
_AGAIN_SECONDS: Final = 1.0


class Observer:
    """`iteration` is what it last told of its blocks; `translator` knows which of them have names of ours."""

    def __init__(self, server: Server, translator: EventTranslator) -> None:
        self._server, self.translator = server, translator
        self.iteration = Iteration()

    async def run(self, on_load: Callable[[], None], on_events: Callable[[list[KvEvent]], None]) -> None:
        """For as long as the engine lives."""
        await asyncio.gather(self._read_load(on_load), self._read_events(on_events))

    def forget(self) -> list[KvEvent]:
        """What is told of the blocks of a server that was lost: that they are gone."""
        return self.translator.begin()

    async def _read_load(self, on_load: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(_LOAD_SECONDS)
            try:
                told = await self._server.load()
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return
                continue
            total = told.total_kv_blocks or self.iteration.total_blocks
            self.iteration = replace(self.iteration, used_blocks=told.used_kv_blocks, total_blocks=total)
            on_load()

    async def _read_events(self, on_events: Callable[[list[KvEvent]], None]) -> None:
        while True:
            try:
                await self._follow(on_events)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    _log.info("the server tells nothing of its blocks: prefixes that it holds are not known here")
                    return
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _follow(self, on_events: Callable[[list[KvEvent]], None]) -> None:
        """One stream of events, to its end."""
        on_events(self.translator.begin())
        stream = self._server.events()
        try:
            async for told in stream:
                if told.WhichOneof("event") == "batch":
                    on_events(self.translator.translate(told.batch))
        finally:
            stream.cancel()
