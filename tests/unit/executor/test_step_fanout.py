"""What a request leaves at its end, when its caller has gone, or has just said that it wants nothing of it."""

from __future__ import annotations

from random import Random
from typing import cast

import pytest

from weir_chassis.drain_rate import DrainRate
from weir_chassis.leases import LeaseLedger
from weir_chassis.metrics import Metrics
from weir_chassis.rate import Rate
from weir_chassis.testing import VirtualClock
from weir_executor.deadlines import Deadlines
from weir_executor.fake import FakeEngine
from weir_executor.handoff.table import HandoffTable
from weir_executor.kv_transfer.hashes import Namespaces
from weir_executor.live_requests import Listener, LiveRequest, LiveRequests
from weir_executor.metrics import ExecutorMetrics
from weir_executor.request import GenerationRequest
from weir_executor.step_fanout import StepFanout
from weir_executor.step_output import RequestEnd, StepOutput


class _Hearer:
    """A stream that only listens."""

    def __init__(self) -> None:
        self.ends: list[RequestEnd] = []

    def hear_end(self, live: LiveRequest, end: RequestEnd) -> None:
        self.ends.append(end)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("told", "aborted", "is_left"), [(False, False, True), (True, False, False), (False, True, False)]
)
async def test_blocks_are_left_only_to_who_may_still_want_them(told: bool, aborted: bool, is_left: bool) -> None:
    clock, hearer, released = VirtualClock(), _Hearer(), list[int]()
    leases = LeaseLedger(clock)
    requests = LiveRequests(leases)
    handoffs = HandoffTable(
        leases,
        Random(1),
        namespaces=Namespaces(FakeEngine().info),
        lease_seconds=30.0,
        release_held=released.append,
    )
    fanout = StepFanout(
        requests,
        Deadlines(clock),
        DrainRate(clock),
        Rate(clock),
        ExecutorMetrics(Metrics("executor")),
        handoffs=handoffs,
        record=lambda _: None,
        offer=None,
    )
    request = GenerationRequest(1, [1] * 32, 5, block_hashes=[bytes(16), bytes(16)], hand_off=True)
    live = LiveRequest(request, 7, cast("Listener", hearer))
    requests.add(live, "r")
    live.told, live.aborted = told, aborted
    fanout.deliver(StepOutput(ended=[RequestEnd(1, 32, 0, 0, 1, held_blocks=2)]))
    fanout.close()
    assert (live.handoff is not None, released) == (is_left, [] if is_left else [1])
    assert leases.counts() == ({"handoff": 1} if is_left else {})
    assert len(hearer.ends) == (0 if told else 1)
