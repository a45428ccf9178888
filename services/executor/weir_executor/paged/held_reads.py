"""Readings of held blocks, done on the step thread between steps: one each, so that they delay a step by one copy."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from weir_executor.engine import TakePayloads
from weir_executor.paged.held import HeldBlocks
from weir_executor.paged.worker import Worker


@dataclass(frozen=True, slots=True)
class _Read:
    key: int
    first: int
    count: int
    take: TakePayloads


class HeldReads:
    """`ask` on any thread, all else on the step thread. Who asks has one reading under way, which bounds the queue."""

    def __init__(self, held: HeldBlocks, worker: Worker) -> None:
        self._held, self._worker = held, worker
        self._asked: deque[_Read] = deque()

    def __bool__(self) -> bool:
        return bool(self._asked)

    def ask(self, key: int, first: int, count: int, take: TakePayloads) -> None:
        assert first >= 0, first
        assert count > 0, count
        self._asked.append(_Read(key, first, count, take))

    def do_one(self) -> None:
        """The oldest, if there is one. It gets None when any of its blocks has gone."""
        if not self._asked:
            return
        read = self._asked[0]
        block_ids = self._held.of(read.key)[read.first : read.first + read.count]
        payloads = self._worker.read_blocks(block_ids) if len(block_ids) == read.count else None
        self._asked.popleft()  # only now: one that could not be done is refused with the others
        read.take(payloads)

    def refuse_all(self) -> None:
        """For the end of the engine."""
        while self._asked:
            self._asked.popleft().take(None)
