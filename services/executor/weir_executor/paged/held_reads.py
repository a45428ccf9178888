"""Readings of held blocks: beside the steps where the worker's memory allows it, else between two steps.

Beside a step nothing keeps the engine from dropping what is being read: it needs the room more. It drops before it
writes anew, so a reading that still finds its blocks held when it has them has read what they were held for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from weir_executor.paged.held import HeldBlocks
from weir_executor.paged.worker import Worker


@dataclass(frozen=True, slots=True)
class _Read:
    key: int
    first: int
    count: int
    answer: Future[Sequence[bytes] | None] = field(default_factory=Future)


class HeldReads:
    """`read` on any thread but the step thread's. Each has one reading under way, which bounds the queue."""

    def __init__(self, held: HeldBlocks, worker: Worker, wake: Callable[[], None]) -> None:
        """`wake` tells the step thread that there is something to do between steps."""
        self._held, self._worker, self._wake = held, worker, wake
        self._asked: deque[_Read] = deque()
        self._changed = threading.Condition()  # guards the two below
        self._reading = 0  # beside the steps
        self._closed = False

    def __bool__(self) -> bool:
        """Whether there is something to do between steps."""
        return bool(self._asked)

    def read(self, key: int, first: int, count: int) -> Sequence[bytes] | None:
        """The payloads, or None when any of the blocks has gone. Takes its time."""
        assert first >= 0, first
        assert count > 0, count
        read = _Read(key, first, count)
        with self._changed:
            if self._closed:
                return None
            if not self._worker.reads_anywhere:
                self._asked.append(read)
            else:
                self._reading += 1
        if not self._worker.reads_anywhere:
            self._wake()
            return read.answer.result()
        try:
            return self._done(read)
        finally:
            with self._changed:
                self._reading -= 1
                self._changed.notify_all()

    def do_asked(self) -> None:
        """Those that wait for a place between two steps. On the step thread."""
        for _ in range(len(self._asked)):
            payloads = self._done(self._asked[0])
            self._asked.popleft().answer.set_result(payloads)

    def close(self) -> None:
        """No reading is under way from now on; those that wait get nothing. After the last step."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._reading)
        while self._asked:
            self._asked.popleft().answer.set_result(None)

    def _done(self, read: _Read) -> Sequence[bytes] | None:
        held = self._held.of(read.key)
        block_ids = held[read.first : read.first + read.count]
        if len(block_ids) < read.count:
            return None
        payloads = self._worker.read_blocks(block_ids)
        return payloads if self._held.of(read.key) is held else None
