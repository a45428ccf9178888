"""Streams are found by name and key, and are never more than there is room for."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.router.retained.streams import delta
from weir_chassis.errors import AlreadyExists, Overloaded, WorkerLost
from weir_chassis.leases import LeaseLedger
from weir_chassis.metrics import Metrics
from weir_chassis.testing import VirtualClock, assert_no_leases
from weir_router.metrics import RouterMetrics
from weir_router.retained.kept import KeptStreams
from weir_router.retained.options import Retention, RetentionLimits
from weir_router.retained.stream import Name, RetainedStream


class Router:
    def __init__(self, *, max_streams: int = 4, max_bytes: int = 1 << 20) -> None:
        limits = RetentionLimits(100, 10, max_streams, max_bytes, 1 << 20)
        self.clock = VirtualClock()
        self.ledger = LeaseLedger(self.clock)
        self.kept = KeptStreams(limits, self.clock, self.ledger, RouterMetrics(Metrics("router")))

    def stream(self, request_id: str, *, tenant: str = "", key: str = "") -> RetainedStream:
        retention = Retention(10.0, key, b"")
        return RetainedStream(Name(tenant, request_id), retention, 1 << 20, self.clock, self.ledger)

    def add(self, request_id: str, *, tenant: str = "", key: str = "", ended: bool = False) -> RetainedStream:
        stream = self.stream(request_id, tenant=tenant, key=key)
        self.kept.add(stream)
        if ended:
            stream.end(None)
        return stream

    def names(self) -> list[str]:
        return [stream.name.request_id for stream in self.kept]


def test_a_stream_is_its_tenants_by_name_and_by_key() -> None:
    router = Router()
    mine, others = router.add("r", tenant="a", key="k"), router.add("r", tenant="b", key="k")
    assert router.kept.find(Name("a", "r")) is router.kept.find_key("a", "k") is mine
    assert router.kept.find(Name("b", "r")) is router.kept.find_key("b", "k") is others
    assert router.kept.find(Name("", "r")) is router.kept.find_key("", "k") is router.kept.find_key("a", "") is None
    router.kept.forget(mine)
    router.kept.forget(mine)
    assert router.kept.find_key("a", "k") is None
    assert router.kept.find_key("b", "k") is others
    router.kept.forget(others)
    assert_no_leases(router.ledger)


def test_a_name_is_taken_until_its_stream_is_forgotten_or_has_failed() -> None:
    router = Router()
    first = router.add("r", ended=True)
    with pytest.raises(AlreadyExists):
        router.add("r")
    router.kept.forget(first)
    router.add("r").end(WorkerLost("gone"))
    assert router.add("r") is router.kept.find(Name("", "r"))
    assert router.ledger.counts() == {"retained_stream": 1}


def test_a_key_that_was_freed_and_taken_again_is_the_second_streams() -> None:
    router = Router()
    first = router.add("r1", key="k")
    router.kept.free_key(first)
    second = router.add("r2", key="k")
    router.kept.forget(first)
    assert router.kept.find_key("", "k") is second


def test_the_oldest_that_is_over_and_not_read_makes_room() -> None:
    router = Router(max_streams=3)
    router.add("runs")
    read = router.add("read", ended=True)
    router.add("over", ended=True)
    with read.reading({}, alone=True):
        router.add("new")
        assert router.names() == ["runs", "read", "new"]
        with pytest.raises(Overloaded) as refused:
            router.add("late")
        assert refused.value.retry_after is not None
        assert refused.value.retry_after >= timedelta(seconds=0.1)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=6), st.integers(0, 6000))
def test_all_together_fit_their_bytes_and_what_runs_keeps_its_end(
    streams: list[tuple[bool, int]], max_bytes: int
) -> None:
    router = Router(max_streams=10, max_bytes=max_bytes)
    for index, (ended, tokens) in enumerate(streams):
        stream = router.add(f"{index}")
        for first in range(tokens):
            stream.log.add(delta(0, first, [1]))
        if ended:
            stream.end(None)
    router.kept.fit()
    left = list(router.kept)
    assert {stream.name.request_id for stream in left} >= {str(i) for i, (ended, _) in enumerate(streams) if not ended}
    a_last_entry_each = 120 * len(left)
    assert sum(stream.log.bytes for stream in left) <= max_bytes + a_last_entry_each
    for stream in left:
        assert sum(place.next_token for place in stream.log.ends().values()) == streams[int(stream.name.request_id)][1]


async def test_what_has_been_kept_long_enough_is_told() -> None:
    router = Router()
    early = router.add("early")
    await router.clock.advance(5)
    router.add("late")
    await router.clock.advance(5)
    assert router.kept.expired() == [early]
