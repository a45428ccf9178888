"""The busier the loop, the rarer the writes of one stream; none waits while there is time to spare."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_router.write_pace import WritePace


class Machine:
    """Its time and how much of it was computed."""

    def __init__(self) -> None:
        self.now = self.computed = 0.0
        self.pace = WritePace(monotonic=lambda: self.now, busy=lambda: self.computed)

    def passes(self, seconds: float, share: float) -> None:
        self.now += seconds
        self.computed += seconds * share
        assert self.pace.note() == self.now


@given(st.lists(st.tuples(st.floats(0.06, 10), st.floats(0, 0.49))))
def test_with_time_to_spare_no_stream_waits(passing: list[tuple[float, float]]) -> None:
    machine = Machine()
    for seconds, share in passing:
        machine.passes(seconds, share)
        assert machine.pace.is_due(machine.now)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_busier_loop_writes_no_more_often(share: float, busier: float) -> None:
    share, busier = sorted((share, busier))
    one, other = Machine(), Machine()
    one.passes(0.1, share)
    other.passes(0.1, busier)
    assert one.pace.interval <= other.pace.interval <= 0.0201


@given(st.floats(0, 1))
def test_what_goes_to_a_worker_waits_a_quarter_as_long(share: float) -> None:
    machine = Machine()
    machine.now, machine.computed = 0.1, 0.1 * share
    assert machine.pace.joining_seconds() == machine.pace.interval / 4 <= 0.00501
    assert bool(machine.pace.joining_seconds()) is (share > 0.5)


def test_a_stream_that_was_not_just_written_does_not_wait() -> None:
    machine = Machine()
    machine.passes(0.1, 1.0)
    assert not machine.pace.is_due(machine.now - 0.01)
    assert machine.pace.is_due(machine.now - 0.03)
    assert machine.pace.is_due(float("-inf"))


def test_a_busy_moment_is_forgotten_as_soon_as_it_is_over() -> None:
    machine = Machine()
    machine.passes(0.1, 1.0)
    machine.passes(0.1, 0.1)
    assert machine.pace.interval == 0.0


def test_a_moment_is_too_short_to_tell() -> None:
    machine = Machine()
    machine.passes(0.01, 1.0)
    assert machine.pace.interval == 0.0
    machine.passes(0.05, 0.9)
    assert machine.pace.interval == pytest.approx(0.02 * (0.055 / 0.06 - 0.5) / 0.5)


async def test_all_who_wait_for_a_round_have_it_together() -> None:
    machine, written = Machine(), list[int]()
    machine.passes(0.1, 1.0)
    machine.pace.next_round(lambda: written.append(1))
    machine.pace.next_round(lambda: written.append(2))
    while not written:
        await asyncio.sleep(0.001)
    assert written == [1, 2]
    machine.pace.next_round(lambda: written.append(3))
    while len(written) < 3:
        await asyncio.sleep(0.001)
