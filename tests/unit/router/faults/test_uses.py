from __future__ import annotations

from random import Random

from weir_chassis.errors import Draining, Internal, WorkerLost
from weir_chassis.testing import VirtualClock
from weir_router.faults.breaker import BreakerLimits, State, Use, WorkerBreaker
from weir_router.faults.uses import Uses


class Bench:
    def __init__(self, *, drains: bool = False) -> None:
        limits = BreakerLimits(failures_in_a_row=1)
        self.breaker = WorkerBreaker(limits, VirtualClock(), Random(0), lambda *_: None)
        self.models: list[str] = []
        self.uses = Uses(self.begin, lambda: drains)

    def state(self) -> State:
        return self.breaker.state

    def begin(self, model: str) -> Use:
        self.models.append(model)
        return self.breaker.begin()


def test_each_end_is_told_once() -> None:
    bench = Bench()
    for handle in range(3):
        bench.uses.begin(handle, "m")
    assert bench.models == ["m"] * 3
    bench.uses.succeeded(0)
    bench.uses.failed(0, Internal("after its end"))
    bench.uses.ended(1)
    bench.uses.failed(1, Internal("after it was withdrawn"))
    assert bench.state() is State.CLOSED
    bench.uses.failed(2, Internal("a step failed"))
    assert bench.state() is State.OPEN


def test_the_end_of_the_stream_is_the_end_of_all_and_a_drain_is_nobodys_fault() -> None:
    error = WorkerLost("gone", metadata={"worker": "w"})
    for drains, state in ((True, State.CLOSED), (False, State.OPEN)):
        bench = Bench(drains=drains)
        bench.uses.begin(1)
        bench.uses.begin(2)
        told = bench.uses.lost(error)
        bench.uses.ended(1)
        assert bench.state() is state
        assert isinstance(told, Draining if drains else WorkerLost)
        assert (told.message, told.metadata) == ("gone", {"worker": "w"})


def test_a_stream_that_nobody_watches_tells_nobody() -> None:
    uses = Uses()
    uses.begin(1, "m")
    uses.failed(1, Internal("x"))
    assert isinstance(uses.lost(WorkerLost("x")), WorkerLost)
