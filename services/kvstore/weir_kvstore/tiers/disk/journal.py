"""Commits and frees, made lasting in the order in which they were asked for, many at once.

    payload written ──▶ header ──▶ [segment synced] ──▶ log record ──▶ [log synced] ──▶ commit returns
    free ──▶ log record ──▶ [log synced] ──▶ header cleared ──▶ the slot may be written over

Killed between any two of these, the next process finds a committed block whole, or not at all: what the log does not
name is not there, and what it names must have a header of the same generation. Without the log the headers tell the
same, for a freed slot's is cleared before anything else is written to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from weir_kvstore.tiers.disk.fsync import Fsync
from weir_kvstore.tiers.disk.log import Kind
from weir_kvstore.tiers.disk.log_file import LogFile
from weir_kvstore.tiers.disk.segment import Segments

# A batch's headers are written one by one, some 5 µs each: nobody waits longer than some milliseconds for a batch.
_MAX_BATCH: Final = 2048

RunOnThread: TypeAlias = Callable[[Callable[[], None]], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Entry:
    kind: Kind | None  # None: nothing is asked but to hear when all before it is done
    slot_bytes: int = 0
    slot: int = 0
    generation: int = 0
    header: bytes = b""
    done: asyncio.Future[None] | None = None  # None: nobody waits
    failure: OSError | None = None


class Journal:
    """One batch at a time, on a thread. To be used from one event loop."""

    def __init__(self, log: LogFile, segments: Segments, fsync: Fsync, run: RunOnThread) -> None:
        self._log = log
        self._segments = segments
        self._fsync = fsync
        self._run = run
        self._pending: list[_Entry] = []  # bounded by the slots and their users: a commit, a free and a wait for each
        self._task: asyncio.Task[None] | None = None

    async def commit(self, slot_bytes: int, slot: int, generation: int, header: bytes) -> None:
        """Returns when the block is found again after a restart. Raises OSError when that cannot be.

        Cancelled, it may become so all the same: whoever then frees the slot frees it after that.
        """
        await self._ask(_Entry(Kind.COMMIT, slot_bytes, slot, generation, header))

    def free(self, slot_bytes: int, slot: int, generation: int) -> None:
        """Never waits. The slot must not be written before `settled`."""
        self._enqueue(_Entry(Kind.FREE, slot_bytes, slot, generation))

    async def settled(self) -> None:
        """All that was asked until now is done. Raises OSError when a free cannot be written: it is tried again."""
        if self._pending or self._task is not None:
            await self._ask(_Entry(None))

    async def close(self) -> None:
        """Raises OSError when the last frees cannot be written."""
        try:
            await self.settled()
        finally:
            self._log.close()

    async def _ask(self, entry: _Entry) -> None:
        entry.done = asyncio.get_running_loop().create_future()
        entry.done.add_done_callback(asyncio.Future.exception)  # heard, also where nobody waits any more
        self._enqueue(entry)
        await asyncio.shield(entry.done)

    def _enqueue(self, entry: _Entry) -> None:
        self._pending.append(entry)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._write_pending(), name="disk_journal")

    async def _write_pending(self) -> None:
        try:
            while self._pending:
                batch, self._pending = self._pending[:_MAX_BATCH], self._pending[_MAX_BATCH:]
                await self._run(partial(self._write, batch))
                if not self._tell(batch):
                    return
        finally:
            self._task = None

    def _tell(self, batch: Sequence[_Entry]) -> bool:
        """Those who wait hear what came of it. Returns False when the log takes nothing now.

        Then whoever waits hears that too, and the frees stay, to be written before anything that is asked later.
        """
        lost = next((entry.failure for entry in batch if entry.kind is not Kind.COMMIT and entry.failure), None)
        told = batch if lost is None else [*batch, *self._pending]
        if lost is not None:
            self._pending = [entry for entry in told if entry.kind is Kind.FREE]
        for entry in told:
            failure = entry.failure or lost
            entry.failure = None
            if entry.done is None or entry.done.done():
                continue
            if failure is None:
                entry.done.set_result(None)
            else:
                entry.done.set_exception(failure)
        return lost is None

    def _write(self, batch: Sequence[_Entry]) -> None:
        """On a thread."""
        commits = [entry for entry in batch if entry.kind is Kind.COMMIT]
        self._write_headers(commits)
        try:
            self._append([entry for entry in batch if entry.kind is not None and not entry.failure])
        except OSError as error:
            for entry in batch:
                entry.failure = entry.failure or error
            return
        for entry in batch:
            if entry.kind is Kind.FREE:
                # One that cannot be cleared counts for nothing beside a log that names it free.
                with suppress(OSError):
                    self._segments[entry.slot_bytes].clear_header(entry.slot)

    def _write_headers(self, commits: Sequence[_Entry]) -> None:
        """Each fails alone, but for those whose segment cannot be synced."""
        for entry in commits:
            try:
                self._segments[entry.slot_bytes].write_header(entry.slot, entry.header)
            except OSError as error:
                entry.failure = error
        if self._fsync is Fsync.NONE:
            return
        for slot_bytes in {entry.slot_bytes for entry in commits}:
            try:
                self._segments[slot_bytes].sync()
            except OSError as error:
                for entry in commits:
                    if entry.slot_bytes == slot_bytes:
                        entry.failure = entry.failure or error

    def _append(self, entries: Sequence[_Entry]) -> None:
        """Raises OSError."""
        if not entries:
            return
        self._log.append([(e.kind, e.slot_bytes, e.slot, e.generation) for e in entries if e.kind is not None])
        if self._fsync is Fsync.COMMIT_BATCH:
            self._log.sync()
