"""What a rank's threads, copies and folder do on a bad day, by a seed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from random import Random
from typing import Any

from fakes.chaotic_tiers import Dice
from weir_executor.trtllm.connector.area_view import AreaView
from weir_executor.trtllm.connector.copies import CopiedOut, Copies
from weir_executor.trtllm.connector.names import StagedName

_LONGEST_TURNS = 6
RANK_FAULTS = (
    "copy in fails",
    "load hangs",
    "copy out fails",
    "copy out hangs",
    "folder fails",
    "lease cannot be read",
)


class SlowThreads:
    """`submit` of an executor: what is submitted runs some turns later, each rank's by its own luck."""

    def __init__(self, dice: Dice, random: Random) -> None:
        self._dice, self._random = dice, random
        self._waiting: list[tuple[int, Callable[[], None], Future[None]]] = []
        self._turn = 0

    def submit(self, function: Callable[..., None], *args: Any) -> Future[None]:
        future: Future[None] = Future()
        is_load = function.__name__ == "copy_in_beside"
        if is_load and self._dice("load hangs"):
            return future
        if is_load and self._dice("copy in fails"):
            function = _fails
        due = self._turn + self._random.randrange(_LONGEST_TURNS)
        self._waiting.append((due, partial(function, *args), future))
        return future

    def turn(self) -> None:
        self._turn += 1
        due = [each for each in self._waiting if each[0] <= self._turn]
        self._waiting = [each for each in self._waiting if each[0] > self._turn]
        for _, function, future in due:
            try:
                function()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(None)


class _Event:
    """Of a copy that is begun: what it reads, it reads as late as can be."""

    def __init__(self, polls: int, read: Callable[[], None]) -> None:
        self._polls, self._read = polls, read

    def query(self) -> bool:
        self._polls -= 1
        if self._polls == 0:
            self._read()
        return self._polls <= 0


class SlowCopies(Copies):
    def __init__(self, dice: Dice, random: Random, pool: Any) -> None:
        super().__init__(pool)
        self._dice, self._random = dice, random

    def copy_out(self, block_ids: Sequence[int], stream: Any) -> CopiedOut:
        if self._dice("copy out fails"):
            raise RuntimeError("injected")
        copied = super().copy_out(block_ids, stream)
        copied.rows.fill_(0xDD)

        def read() -> None:
            copied.rows.copy_(self._rows[list(block_ids)])

        polls = 1 << 40 if self._dice("copy out hangs") else self._random.randint(1, _LONGEST_TURNS)
        copied.done = _Event(polls, read)
        return copied


class FaultyView(AreaView):
    def __init__(self, dice: Dice, path: Any, salt_id: Any = None) -> None:
        super().__init__(path, salt_id)
        self._dice = dice

    def staged(self) -> Sequence[StagedName]:
        if self._dice("folder fails"):
            raise OSError(errno.EIO, "injected")
        return super().staged()

    def open(self, lease: str) -> Any:
        if self._dice("lease cannot be read"):
            raise OSError(errno.EMFILE, "injected")
        return super().open(lease)


def _fails(*_: Any) -> None:
    raise RuntimeError("injected: an illegal memory access was encountered")
