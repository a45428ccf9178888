"""Which threads copy, and where they run."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_executor.kv_transfer.copy_threads import CopyThreads, shares


@given(st.sets(st.integers(0, 255), min_size=2), st.integers(2, 16))
def test_every_processor_is_in_one_share_and_no_share_is_empty(processors: set[int], most: int) -> None:
    found = shares(processors, most)
    assert len(found) == min(most, len(processors))
    assert all(found)
    assert sorted(one for share in found for one in share) == sorted(processors)


def test_one_processor_is_not_shared_out() -> None:
    assert shares({3}, 8) == []
    assert shares((), 8) == []


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no such system call here")
async def test_two_copies_at_once_have_no_processor_in_common() -> None:
    allowed, threads, both_run = os.sched_getaffinity(0), CopyThreads(), threading.Barrier(2)

    def where() -> set[int]:
        both_run.wait(timeout=10)
        return os.sched_getaffinity(0)

    try:
        one, other = await asyncio.gather(threads.run(where), threads.run(where))
    finally:
        threads.close()
    assert os.sched_getaffinity(0) == allowed, "the event loop runs wherever it did"
    assert one | other <= allowed
    assert len(allowed) == 1 or not one & other


async def test_a_copy_that_nobody_waits_for_any_more_does_not_start() -> None:
    threads, go_on, started = CopyThreads(), threading.Event(), list[str]()
    try:
        running = [threads.run(go_on.wait, 10) for _ in range(8)]
        given_up = threads.run(started.append, "given up")
        given_up.cancel()
        await asyncio.sleep(0)  # the executor hears of it one turn of the loop later
        go_on.set()
        await asyncio.gather(*running)
        await threads.run(started.append, "last")
    finally:
        go_on.set()
        threads.close()
    assert started == ["last"]
