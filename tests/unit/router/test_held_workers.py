"""Which workers a request is at, which it gets never again, and that none is left with anything."""

from __future__ import annotations

from typing import Any, cast

import pytest

from unit.router.scripted_call import ScriptedCall
from weir.executor.v1.executor_pb2 import Submit
from weir.postprocess.v1.postprocess_pb2 import Open
from weir_chassis.errors import WeirError
from weir_chassis.metrics import Metrics
from weir_chassis.testing import VirtualClock
from weir_router.attempt import Attempt
from weir_router.fleet.outstanding import Outstanding
from weir_router.hedge import Second
from weir_router.held_workers import HeldWorkers
from weir_router.legs import Leg
from weir_router.metrics import RouterMetrics
from weir_router.streams.executor_stream import ExecutorStream
from weir_router.streams.postprocess_stream import PostprocessStream

HANDLE = 7
NOBODY = cast("Attempt", object())  # no stream says anything here, so nobody is called


class Bench:
    """Three executors and two replicas that nobody reads."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.workers = HeldWorkers(HANDLE, RouterMetrics(Metrics("test")))
        self.executors = [ExecutorStream(f"e:{i}", self.clock) for i in range(3)]
        self.lanes = [PostprocessStream(f"p:{i}", self.clock) for i in range(2)]
        self.outstanding = Outstanding()

    def leg(self, executor: int) -> Leg:
        """With the request on it, as `Attempt.submit` leaves it."""
        stream = self.executors[executor]
        stream.submit(Submit(handle=HANDLE), NOBODY)
        return Leg(stream, self.outstanding.reserve(100))

    def hedge(self, executor: int) -> None:
        self.workers.second = Second(NOBODY, self.executors[executor], self.leg(executor), lambda: None)

    def change_lane(self, lane: int) -> None:
        self.workers.change_lane(self.lanes[lane])
        self.lanes[lane].open(Open(handle=HANDLE, n=1), NOBODY)

    @property
    def live(self) -> list[int]:
        return [stream.num_live for stream in self.executors]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_entering_one_leaves_the_one_before_which_is_not_used_again(bench: Bench) -> None:
    bench.workers.enter(bench.leg(0))
    bench.workers.enter(bench.leg(1))
    assert (bench.live, bench.outstanding.routed_tokens) == ([0, 1, 0], 100)
    assert bench.workers.executor is bench.executors[1]
    assert bench.workers.used_executors == {"e:0", "e:1"}


async def test_who_hands_over_keeps_the_request_until_all_is_over(bench: Bench) -> None:
    bench.workers.enter(bench.leg(0))
    bench.workers.enter(bench.leg(1), handed_over=True)
    assert (bench.live, bench.outstanding.routed_tokens) == ([1, 1, 0], 100)
    bench.workers.release()
    assert (bench.live, bench.outstanding.routed_tokens) == ([0, 0, 0], 0)


async def test_who_had_no_room_is_not_asked_until_it_is_forgiven(bench: Bench) -> None:
    bench.workers.enter(bench.leg(0))
    bench.workers.note_full()
    assert bench.workers.used_executors == {"e:0"}
    bench.workers.forgive_full()
    assert bench.workers.used_executors == frozenset()
    bench.workers.enter(bench.leg(1))
    assert bench.workers.used_executors == {"e:1"}, "the first knows nothing of it"


async def test_a_second_that_wins_is_entered_and_one_that_loses_is_withdrawn(bench: Bench) -> None:
    bench.workers.enter(bench.leg(0))
    bench.hedge(1)
    assert bench.workers.used_executors == {"e:0", "e:1"}
    bench.workers.drop_second("lost")
    bench.workers.drop_second("lost")
    assert (bench.live, bench.outstanding.routed_tokens) == ([1, 0, 0], 100)
    bench.hedge(2)
    bench.workers.enter(bench.workers.take_second())
    assert (bench.live, bench.outstanding.routed_tokens) == ([0, 0, 1], 100)
    assert bench.workers.used_executors == {"e:0", "e:1", "e:2"}
    with pytest.raises(AssertionError, match="no second"):
        bench.workers.take_second()


async def test_a_replica_that_is_replaced_is_closed_and_not_used_again(bench: Bench) -> None:
    bench.change_lane(0)
    bench.change_lane(1)
    assert [lane.num_live for lane in bench.lanes] == [0, 1]
    assert bench.workers.used_postprocessors == {"p:0", "p:1"}
    bench.workers.release()
    bench.workers.release()
    assert [lane.num_live for lane in bench.lanes] == [0, 0]


async def test_one_that_was_lost_and_is_back_knows_nothing(bench: Bench) -> None:
    bench.workers.enter(bench.leg(0))
    bench.workers.enter(bench.leg(1))
    call = ScriptedCall()
    call.end()
    with pytest.raises(WeirError):
        await bench.executors[0].run(cast("Any", call))
    assert bench.workers.used_executors == {"e:1"}


async def test_before_any_there_is_nothing_to_give_back(bench: Bench) -> None:
    bench.workers.release()
    assert bench.workers.used_executors == bench.workers.used_postprocessors == frozenset()
    with pytest.raises(AssertionError, match="no executor"):
        _ = bench.workers.executor
