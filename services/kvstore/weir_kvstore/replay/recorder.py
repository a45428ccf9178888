"""Writes down what the store is asked, as a trace that can be played again. Bounded, and never waited for."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import Final

from weir.kvstore.v1.kvstore_pb2 import MatchPrefixRequest
from weir_chassis.clock import Clock
from weir_chassis.telemetry import get_logger
from weir_kvstore.bounds import HASH_BYTES
from weir_kvstore.replay.trace import Lookup, to_line

_SECONDS: Final = 1.0
# Hashes of lookups that are not written yet: some hundred thousand blocks a second, which a disk keeps up with.
_MAX_WAITING_BYTES: Final = 2 << 20


class TraceRecorder:
    """Two files of `max_bytes` each: the one that grows, and beside it, with `.1` behind its name, the one before."""

    def __init__(self, path: Path, max_bytes: int, clock: Clock) -> None:
        self._path, self._max_bytes, self._clock = path, max_bytes, clock
        self._waiting: deque[Lookup] = deque()
        self._waiting_bytes = 0
        self.dropped = 0  # lookups that were not written

    def record(self, request: MatchPrefixRequest) -> None:
        """Notes it, unless it leases nothing: that only looked. Dropped where the disk does not keep up."""
        hashes = request.block_hashes
        if request.HasField("lease_duration") and not request.lease_duration.ByteSize():
            return
        if self._waiting_bytes + len(hashes) > _MAX_WAITING_BYTES:
            self.dropped += 1
            return
        tokens = len(hashes) // HASH_BYTES * request.block_size
        self._waiting.append(Lookup(self._clock.time(), hashes, tokens, namespace=request.namespace))
        self._waiting_bytes += len(hashes)

    async def run(self) -> None:
        """For ever writes what was noted, every second. A disk that fails is logged, and tried again."""
        while True:
            await self._clock.sleep(_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        lookups, self._waiting = self._waiting, deque()
        self._waiting_bytes = 0
        if not lookups:
            return
        try:
            await asyncio.to_thread(self._write, lookups)
        except OSError as error:
            self.dropped += len(lookups)
            get_logger().warning("trace_not_written", path=str(self._path), lookups=len(lookups), error=str(error))

    def _write(self, lookups: deque[Lookup]) -> None:
        """Whole lines only, so that both files are traces by themselves."""
        size = self._path.stat().st_size if self._path.exists() else 0
        text: list[str] = []
        for lookup in lookups:
            line = to_line(lookup) + "\n"
            if size + len(line) > self._max_bytes and size:
                self._append(text)
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                text, size = [], 0
            text.append(line)
            size += len(line)
        self._append(text)

    def _append(self, lines: list[str]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
