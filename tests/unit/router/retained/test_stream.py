"""Who reads a stream, and until when it is kept, under a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from unit.router.retained.streams import delta, place, said
from weir_chassis.errors import Cancelled
from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import VirtualClock, assert_no_leases
from weir_router.retained.options import Retention
from weir_router.retained.stream import Name, RetainedStream


class Kept:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.ledger = LeaseLedger(self.clock)
        retention = Retention(seconds=10.0, key="", fingerprint=b"")
        self.stream = RetainedStream(Name("", "r"), retention, 1 << 20, self.clock, self.ledger)


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    assert_no_leases(made.ledger)


async def test_it_is_kept_for_a_while_without_a_reader_and_as_long_as_there_is_one(kept: Kept) -> None:
    stream, clock = kept.stream, kept.clock
    await clock.advance(9.9)
    assert not stream.expired()
    with stream.reading({}, alone=True):
        assert kept.ledger.counts() == {"retained_reader": 1}
        await clock.advance(100)
        assert not stream.expired()
    await clock.advance(9.9)
    assert not stream.expired()
    await clock.advance(0.1)
    assert stream.expired()


async def test_it_is_kept_for_a_while_after_its_end_however_often_it_is_read(kept: Kept) -> None:
    stream, clock = kept.stream, kept.clock
    await clock.advance(5)
    stream.end(None)
    await clock.advance(9)
    with stream.reading({}, alone=True):
        pass
    assert not stream.expired()
    await clock.advance(1)
    assert stream.expired()


async def test_a_reader_elsewhere_counts_while_it_is_heard_of(kept: Kept) -> None:
    stream, clock = kept.stream, kept.clock
    stream.read_elsewhere_until = clock.monotonic() + 30
    await clock.advance(39.9)
    assert not stream.expired()
    await clock.advance(0.1)
    assert stream.expired()


async def test_whoever_reads_alone_takes_it_over(kept: Kept) -> None:
    with kept.stream.reading({}, alone=False) as first, kept.stream.reading({}, alone=False) as second:
        await kept.stream.write([delta(0, 0, [1])])
        assert said(await first.take()) == said(await second.take()) == said([delta(0, 0, [1])])
        with kept.stream.reading({0: place([1])}, alone=True) as third:
            for taken_over in (first, second):
                with pytest.raises(Cancelled):
                    await taken_over.take()
            await kept.stream.write([delta(0, 1, [2])])
            assert await third.take() == [delta(0, 1, [2])]


async def test_of_too_many_readers_the_oldest_ends(kept: Kept) -> None:
    with ExitStack() as stack:
        readers = [stack.enter_context(kept.stream.reading({}, alone=False)) for _ in range(9)]
        await kept.stream.write([delta(0, 0, [1])])
        with pytest.raises(Cancelled):
            await readers[0].take()
        for reader in readers[1:]:
            assert len(await reader.take()) == 1


async def test_cancel_ends_the_task_and_the_log_with_its_cause(kept: Kept) -> None:
    stream = kept.stream
    stream.task = asyncio.create_task(asyncio.sleep(100))
    stream.cancel(Cancelled("first"))
    stream.cancel(Cancelled("second"))
    await stream.write([delta(0, 0, [1])])  # too late: not wanted
    with pytest.raises(asyncio.CancelledError):
        await stream.task
    with stream.reading({}, alone=True) as reader, pytest.raises(Cancelled, match="first"):
        await reader.take()
