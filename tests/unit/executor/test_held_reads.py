"""Readings of held blocks, beside the steps and between them: right, or not at all, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from weir_executor.paged.block_pool import BlockPool
from weir_executor.paged.held import HeldBlocks
from weir_executor.paged.held_reads import HeldReads
from weir_executor.paged.worker import Worker

_PATIENCE_SECONDS = 10.0


class _Memory:
    """Of a worker: block `i` holds the byte `i`. `on_read` is called in the middle of a reading."""

    def __init__(self, *, anywhere: bool) -> None:
        self.reads_anywhere = anywhere
        self.on_read: Callable[[], None] = lambda: None
        self.read_on: list[threading.Thread] = []

    def read_blocks(self, block_ids: Sequence[int]) -> list[bytes]:
        self.read_on.append(threading.current_thread())
        self.on_read()
        return [bytes([block_id]) for block_id in block_ids]


class _Bench:
    def __init__(self, *, anywhere: bool) -> None:
        self.pool, self.memory = BlockPool(8), _Memory(anywhere=anywhere)
        self.held, self.woken = HeldBlocks(self.pool), threading.Event()
        self.reads = HeldReads(self.held, cast("Worker", self.memory), self.woken.set)
        owned = self.pool.allocate(4)
        self.held.hold(1, owned)
        self.pool.release(owned)

    def step(self) -> None:
        """The step thread's turn, once somebody has asked."""
        assert self.woken.wait(_PATIENCE_SECONDS)
        self.reads.do_asked()


def test_beside_the_steps_nobody_waits_for_one() -> None:
    bench = _Bench(anywhere=True)
    assert bench.reads.read(1, 1, 2) == [b"\1", b"\2"]
    assert bench.reads.read(1, 3, 2) is None
    assert bench.reads.read(2, 0, 1) is None
    assert not bench.reads
    assert not bench.woken.is_set()


def test_between_steps_it_is_the_step_thread_that_reads() -> None:
    bench = _Bench(anywhere=False)
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(bench.reads.read, 1, 0, 4), threads.submit(bench.reads.read, 1, 4, 1)]
        while not all(each.done() for each in asked):
            bench.step()
    assert asked[0].result(_PATIENCE_SECONDS) == [bytes([i]) for i in range(4)]
    assert asked[1].result(_PATIENCE_SECONDS) is None
    assert set(bench.memory.read_on) == {threading.current_thread()}


@pytest.mark.parametrize("held_again", [False, True])
def test_what_is_dropped_while_it_is_read_is_not_believed(held_again: bool) -> None:
    """Others may have written there since, under the same request's name even."""
    bench = _Bench(anywhere=True)

    def drop() -> None:
        bench.held.drop_all()
        if held_again:
            bench.held.hold(1, bench.pool.allocate(4))

    bench.memory.on_read = drop
    assert bench.reads.read(1, 0, 4) is None


def test_the_end_waits_for_who_reads_and_lets_nobody_in_after() -> None:
    bench, begun, may_end = _Bench(anywhere=True), threading.Event(), threading.Event()

    def read_slowly() -> None:
        begun.set()
        may_end.wait(_PATIENCE_SECONDS)

    bench.memory.on_read = read_slowly
    with ThreadPoolExecutor(2) as threads:
        reading = threads.submit(bench.reads.read, 1, 0, 1)
        assert begun.wait(_PATIENCE_SECONDS)
        closing = threads.submit(bench.reads.close)
        assert not closing.done()
        may_end.set()
        closing.result(_PATIENCE_SECONDS)
        assert reading.result(_PATIENCE_SECONDS) == [b"\0"]
    assert bench.reads.read(1, 0, 1) is None


def test_the_end_answers_those_who_wait_for_a_step() -> None:
    bench = _Bench(anywhere=False)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(bench.reads.read, 1, 0, 1)
        assert bench.woken.wait(_PATIENCE_SECONDS)
        bench.reads.close()
        assert waiting.result(_PATIENCE_SECONDS) is None
