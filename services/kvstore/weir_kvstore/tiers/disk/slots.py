"""`SegmentSlots`: room on disk by block id. The loop decides, threads do.

claim ──▶ Space names a slot ──▶ write: the file grows or shrinks as Space said, then pieces, on a thread
      ──▶ commit: Journal ──▶ read: Reader ──▶ free: Journal, and the slot is Space's again
"""

from __future__ import annotations

import asyncio
import mmap
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from weir_chassis.clock import Clock
from weir_chassis.telemetry import get_logger
from weir_kvstore.record import Bytes, Record
from weir_kvstore.tier import Recovered
from weir_kvstore.tiers.disk.direct import Reads, is_possible
from weir_kvstore.tiers.disk.directory import Directory
from weir_kvstore.tiers.disk.files import NO_ROOM, Files
from weir_kvstore.tiers.disk.fsync import Fsync
from weir_kvstore.tiers.disk.geometry import payload_offset
from weir_kvstore.tiers.disk.header import SlotHeader, encode
from weir_kvstore.tiers.disk.journal import Journal
from weir_kvstore.tiers.disk.log_file import LogFile
from weir_kvstore.tiers.disk.reads import Reader
from weir_kvstore.tiers.disk.recovery import Found, recover, uncollected
from weir_kvstore.tiers.disk.segment import Segments
from weir_kvstore.tiers.disk.space import Allocate, Change, Punch, Retire, Space

_T = TypeVar("_T")

# Two requests keep a disk busy; the others write, sync, or wait for a disk that stalls.
_THREADS: Final = 4
# A file system that was full is asked again after so long: somebody may have made room.
_FULL_SECONDS: Final = 60.0
_CLOSE_SECONDS: Final = 5.0


@dataclass(slots=True, eq=False)
class _Block:
    slot_bytes: int
    slot: int
    size_bytes: int
    generation: int = 0  # not zero: the journal has heard of it
    under_way: int = 0  # reads and writes that threads are at
    hidden: bool = False
    freed: bool = False
    has_room: bool = True  # on disk


class SegmentSlots:
    """Raises OSError when the directory cannot be had (DirectoryRefusedError: it says why and what to do)."""

    def __init__(
        self,
        path: Path,
        capacity_bytes: int,
        clock: Clock,
        *,
        fsync: Fsync = Fsync.NONE,
        reads: Reads = Reads.DIRECT,
        files: Files | None = None,
    ) -> None:
        self._path = path
        self._clock = clock
        self._fsync = fsync
        self._reads = reads
        self._files = files or Files()
        self._space = Space(capacity_bytes)
        self._full_until = 0.0
        self._changes: deque[Change] = deque()  # what Space wants done, before anybody writes
        self._changing = asyncio.Lock()
        self._giving_back: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Future[None]] = set()
        self._blocks: dict[int, _Block] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="disk")
        self._reader = Reader(self._run)
        self._next_generation = 1
        self._directory: Directory | None = None
        self._segments: Segments
        self._journal: Journal

    @property
    def capacity_bytes(self) -> int:
        """Less than it was made with while the file system has no more to give."""
        self._grow_again_in_time()
        return self._space.capacity_bytes

    @property
    def used_bytes(self) -> int:
        return self._space.held_bytes

    async def recover(self) -> Sequence[Recovered]:
        return await self._run(self._open)

    def resize(self, capacity_bytes: int) -> None:
        self._full_until = 0.0
        self._punch_soon(self._space.resize(capacity_bytes))

    def claim(self, block_id: int, size_bytes: int) -> bool:
        assert block_id not in self._blocks, block_id
        self._grow_again_in_time()
        claim = self._space.claim(size_bytes)
        if claim is None:
            return False
        self._changes += claim.changes
        self._blocks[block_id] = _Block(claim.slot_bytes, claim.slot, size_bytes)
        return True

    async def write(self, block_id: int, offset: int, piece: Bytes) -> None:
        block = self._blocks[block_id]
        assert 0 <= offset < offset + len(piece) <= block.size_bytes, (offset, len(piece), block.size_bytes)
        assert not block.generation, "a committed block is not written"
        if offset == 0:
            await self._change_files()
        segment = self._segments[block.slot_bytes]
        try:
            await asyncio.shield(self._use(block, self._run(partial(segment.write, block.slot, offset, piece))))
        except OSError as error:
            if error.errno in NO_ROOM:
                block.has_room = False
                self._stop_growing()
            raise

    async def commit(self, block_id: int, record: Record) -> None:
        block = self._blocks[block_id]
        assert record.size_bytes == block.size_bytes, record
        generation = self._next_generation
        raw = encode(SlotHeader(generation, record, self._clock.time()), block.slot_bytes, block.slot)
        self._next_generation += 1
        block.generation = generation
        await self._journal.commit(block.slot_bytes, block.slot, generation, raw)

    async def read(self, block_id: int, offset: int, size_bytes: int) -> Bytes:
        into = memoryview(mmap.mmap(-1, size_bytes or 1))[:size_bytes]
        await asyncio.shield(self._read(block_id, offset, into))
        return into

    async def read_into(self, block_id: int, offset: int, into: memoryview) -> None:
        await _to_the_end(self._read(block_id, offset, into))

    def hide(self, block_id: int) -> None:
        self._hide(self._blocks[block_id])

    def free(self, block_id: int) -> None:
        block = self._blocks.pop(block_id)
        self._hide(block)
        block.freed = True
        if not block.under_way:
            self._give_back(block)

    async def settle(self) -> None:
        await self._journal.settled()

    async def close(self) -> None:
        """What was freed until now stays free. Raises nothing: what could not be written is said in the log.

        A disk that hangs is left behind, with the threads that wait for it and the directory, until the process ends.
        """
        if self._directory is not None:
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._finish()
            except TimeoutError:
                get_logger().error("disk_tier_left_behind", directory=str(self._path))
            else:
                self._segments.close()
                self._directory.close()
            self._directory = None
        self._threads.shutdown(wait=False)
        self._blocks.clear()

    def check_integrity(self) -> None:
        self._space.check_integrity()
        places = {(block.slot_bytes, block.slot) for block in self._blocks.values()}
        assert len(places) == len(self._blocks), "two blocks in one slot"

    async def _finish(self) -> None:
        if self._giving_back is not None:
            self._giving_back.cancel()
            await asyncio.wait([self._giving_back])
        if self._under_way:
            await asyncio.wait(self._under_way)
        try:
            await self._journal.close()
        except OSError as error:
            get_logger().error("disk_tier_closed_with_unwritten_frees", error=str(error))

    @uncollected()
    def _open(self) -> list[Recovered]:
        """On a thread, while nobody else uses this object. Raises OSError, and then holds nothing."""
        directory = Directory(self._path)
        direct = self._reads is Reads.DIRECT and is_possible(self._files, directory.format_path)
        segments = Segments(self._files, directory.segment_path, direct=direct)
        try:
            left = recover(self._files, directory, segments, self._space.capacity_bytes)
            log = LogFile(
                self._files, directory.log_path, left.live, epoch=left.epoch, next_generation=left.next_generation
            )
        except BaseException:
            segments.close()
            directory.close()
            raise
        self._directory, self._segments = directory, segments
        self._journal = Journal(log, segments, self._fsync, self._run)
        self._next_generation = left.next_generation
        held: dict[int, set[int]] = {}
        for block in left.blocks:
            held.setdefault(block.slot_bytes, set()).add(block.slot)
        self._changes += self._space.restore(held)
        return [self._take_over(block_id, found) for block_id, found in enumerate(left.blocks, 1)]

    def _take_over(self, block_id: int, found: Found) -> Recovered:
        record = found.header.record
        self._blocks[block_id] = _Block(found.slot_bytes, found.slot, record.size_bytes, found.header.generation)
        return Recovered(block_id, record, found.header.stored_at)

    def _read(self, block_id: int, offset: int, into: memoryview) -> asyncio.Future[None]:
        block = self._blocks[block_id]
        assert 0 <= offset <= offset + len(into) <= block.size_bytes, (offset, len(into), block.size_bytes)
        position = payload_offset(block.slot_bytes, block.slot) + offset
        return self._use(block, self._reader.read(self._segments[block.slot_bytes], position, into))

    def _use(self, block: _Block, work: asyncio.Future[None]) -> asyncio.Future[None]:
        """The slot is nobody else's before the work is done, though the block be freed and whoever waits be gone."""
        block.under_way += 1
        self._under_way.add(work)
        work.add_done_callback(partial(self._done, block))
        return work

    def _done(self, block: _Block, work: asyncio.Future[None]) -> None:
        work.exception()  # heard, also where nobody waits any more
        self._under_way.discard(work)
        block.under_way -= 1
        if block.freed and not block.under_way:
            self._give_back(block)

    def _hide(self, block: _Block) -> None:
        if block.generation and not block.hidden:
            self._journal.free(block.slot_bytes, block.slot, block.generation)
        block.hidden = True

    def _give_back(self, block: _Block) -> None:
        self._punch_soon(self._space.free(block.slot_bytes, block.slot, has_room=block.has_room))
        if not block.has_room:
            self._stop_growing()

    def _punch_soon(self, punches: Sequence[Punch]) -> None:
        """Room that is too much goes back also when nobody writes any more."""
        self._changes += punches
        if punches and self._directory is not None and (self._giving_back is None or self._giving_back.done()):
            self._giving_back = asyncio.get_running_loop().create_task(self._give_back_room(), name="disk_give_back")

    async def _give_back_room(self) -> None:
        while self._changes:
            try:
                await self._change_files()
            except OSError:
                return  # the journal takes nothing now: whoever writes next tries again, and hears of it

    async def _change_files(self) -> None:
        """What Space wanted until now is done, and no free slot counts for what it held. Raises OSError."""
        await self._journal.settled()
        if not self._changes and not self._changing.locked():
            return
        async with self._changing:
            wanted = len(self._changes)
            await self._journal.settled()
            for _ in range(wanted):
                await self._change(self._changes.popleft())

    async def _change(self, change: Change) -> None:
        """A file that cannot be changed is as it was: whoever then writes hears of it."""
        try:
            await _to_the_end(self._run(partial(_apply, change, self._segments)))
        except OSError as error:
            get_logger().warning("disk_segment_not_changed", change=str(change), error=str(error))
            if isinstance(change, Allocate):
                self._space.not_allocated(change)
                self._stop_growing()

    def _stop_growing(self) -> None:
        if not self._full_until:
            get_logger().warning("disk_tier_full", directory=str(self._path), bytes=self._space.held_bytes)
        self._full_until = self._clock.monotonic() + _FULL_SECONDS
        self._space.stop_growing()

    def _grow_again_in_time(self) -> None:
        if self._full_until and self._clock.monotonic() >= self._full_until:
            self._full_until = 0.0
            self._space.grow_again()

    def _run(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work)


def _apply(change: Change, segments: Segments) -> None:
    """On a thread. Raises OSError."""
    match change:
        case Allocate(slot_bytes, first, stop):
            segments[slot_bytes].allocate(first, stop)
        case Punch(slot_bytes, slot):
            segments[slot_bytes].punch(slot)
        case Retire(slot_bytes):
            segments.remove(slot_bytes)


async def _to_the_end(work: asyncio.Future[None]) -> None:
    """Waits for the work also when cancelled: a thread may be at it still."""
    try:
        await asyncio.shield(work)
    finally:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([work])
