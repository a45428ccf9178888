from __future__ import annotations

from random import Random

from weir_chassis.errors import Internal, WorkerLost
from weir_chassis.testing import VirtualClock
from weir_router.faults.breaker import BreakerLimits, State, WorkerBreaker
from weir_router.faults.table import Where
from weir_router.faults.uses import Uses


class Bench:
    def __init__(self, failures_in_a_row: int = 1) -> None:
        limits = BreakerLimits(failures_in_a_row=failures_in_a_row)
        self.breaker = WorkerBreaker(limits, VirtualClock(), Random(0), lambda *_: None)
        self.models: list[str] = []
        self.uses = Uses(lambda model: (self.models.append(model), self.breaker.begin())[1])


def test_each_end_is_told_once() -> None:
    bench = Bench()
    for handle in range(3):
        bench.uses.begin(handle, "m")
    assert bench.models == ["m"] * 3
    bench.uses.succeeded(0)
    bench.uses.failed(0, Internal("after its end"))
    bench.uses.ended(1)
    bench.uses.failed(1, Internal("after it was withdrawn"))
    assert bench.breaker.state is State.CLOSED
    bench.uses.failed(2, Internal("a step failed"))
    assert bench.breaker.state is State.OPEN


def test_the_end_of_the_stream_is_the_end_of_all() -> None:
    drained, lost = Bench(), Bench()
    for bench, where in ((drained, Where.DRAIN), (lost, Where.AFTER_FIRST_TOKEN)):
        bench.uses.begin(1)
        bench.uses.begin(2)
        bench.uses.all_failed(WorkerLost("gone"), where)
        bench.uses.ended(1)
    assert drained.breaker.state is State.CLOSED
    assert lost.breaker.state is State.OPEN


def test_a_stream_that_nobody_watches_tells_nobody() -> None:
    uses = Uses()
    uses.begin(1, "m")
    uses.failed(1, Internal("x"))
    uses.all_failed(Internal("x"), Where.STALL)
