"""Reads that are asked for together are done together: neighbours on disk in one request, straight into their buffers.

Whoever reads a chain asks for its blocks at once; they were put one after another and lie in sequence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

from weir_kvstore.tiers.disk.journal import RunOnThread
from weir_kvstore.tiers.disk.segment import Segment

# From here on a disk reads at its full rate, if several requests are under way: nothing reads ahead of a direct one.
_REQUEST_BYTES: Final = 4 * 1024 * 1024
# Reading over a table of headers, or over the end of a slot, is cheaper than a second request.
_GAP_BYTES: Final = 64 * 1024
# The kernel takes 1024 buffers in one call, and a gap is one, too.
_REQUEST_READS: Final = 500


@dataclass(slots=True, eq=False)
class Read:
    segment: Segment
    position: int  # in the file
    into: memoryview
    done: asyncio.Future[None]

    @property
    def end(self) -> int:
        return self.position + len(self.into)


def requests(reads: Sequence[Read]) -> list[list[Read]]:
    """The same reads, neighbours together, none twice as long as it need be. Pure."""
    found: list[list[Read]] = []
    for read in sorted(reads, key=lambda read: (read.segment.slot_bytes, read.position)):
        if not found or not _joins(read, found[-1]):
            found.append([])
        found[-1].append(read)
    return found


def _joins(read: Read, request: Sequence[Read]) -> bool:
    first, last = request[0], request[-1]
    return (
        read.segment is last.segment
        and 0 <= read.position - last.end <= _GAP_BYTES
        and read.end - first.position <= _REQUEST_BYTES
        and len(request) < _REQUEST_READS
    )


class Reader:
    """To be used from one event loop. What it holds is bounded by those who wait for it."""

    def __init__(self, run: RunOnThread) -> None:
        self._run = run
        self._asked: list[Read] = []
        self._under_way: set[asyncio.Task[None]] = set()

    def read(self, segment: Segment, position: int, into: memoryview) -> asyncio.Future[None]:
        """Done when `into` is full; OSError when it cannot be. Then nobody writes there any more."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._start)
        self._asked.append(Read(segment, position, into, done))
        return done

    def _start(self) -> None:
        """Everything that was asked for in this turn of the loop."""
        asked, self._asked = self._asked, []
        for request in requests(asked):
            task = asyncio.get_running_loop().create_task(self._do(request), name="disk_read")
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _do(self, request: Sequence[Read]) -> None:
        try:
            await self._run(partial(_read_together, request))
        except OSError as error:
            if len(request) == 1:
                _tell(request, error)
                return
            for read in request:  # one bad place is one block's
                await self._do([read])
        else:
            _tell(request, None)


def _tell(request: Sequence[Read], failure: OSError | None) -> None:
    for read in request:
        if failure is None:
            read.done.set_result(None)
        else:
            read.done.set_exception(failure)


def _read_together(request: Sequence[Read]) -> None:
    """On a thread. Raises OSError."""
    buffers = [request[0].into]
    for before, read in pairwise(request):
        if read.position > before.end:
            buffers.append(memoryview(bytearray(read.position - before.end)))
        buffers.append(read.into)
    request[0].segment.read(buffers, request[0].position)
