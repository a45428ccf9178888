"""The prefixes of live requests in the folder that the engine's processes see. Used on the engine's loop."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from weir_executor.request import GenerationRequest
from weir_executor.trtllm.connector.area import Area
from weir_executor.trtllm.connector.names import StagedName

_log = logging.getLogger(__name__)
_SWEEP_SECONDS: Final = 60.0


class Staging:
    def __init__(self, area: Area) -> None:
        self._area = area
        self._staged: dict[int, StagedName] = {}  # by the request's key

    def note_scope(self, root: bytes) -> None:
        """Where it cannot be noted, engines that need it share nothing of it with the store."""
        try:
            self._area.note_scope(root)
        except OSError as error:
            _log.warning("a scope cannot be noted in %s: %s", self._area.path, error)

    async def stage(self, request: GenerationRequest) -> bool:
        """Whether its stored prefix is there for the engine to find. What cannot be staged is computed."""
        assert request.stored_prefix is not None
        try:
            name = await asyncio.to_thread(self._area.stage, request.stored_prefix, request.block_hashes)
        except OSError as error:
            _log.warning("a prefix cannot be staged in %s: %s", self._area.path, error)
            return False
        if name is not None:
            self._staged[request.key] = name
        return name is not None

    def drop(self, key: int) -> None:
        """Nobody new takes it. Twice is once. A gigabyte takes a tenth of a second, so that a thread does it."""
        if (name := self._staged.pop(key, None)) is not None:
            asyncio.get_running_loop().run_in_executor(None, self._area.drop, name)

    async def run(self) -> None:
        """Ends what the engine's processes have forgotten, for ever."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            await asyncio.to_thread(self._area.sweep)

    def close(self) -> None:
        """Once the engine's processes have ended."""
        self._staged.clear()
        self._area.close()
