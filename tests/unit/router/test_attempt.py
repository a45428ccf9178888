"""What an attempt makes of what its two streams say, in orders that whole requests seldom show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from weir.executor.v1.executor_pb2 import ExecutorOutputFinished, RequestEnd, Submit
from weir.inference.v1.output_pb2 import FinishReason
from weir.inference.v1.stream_pb2 import Accepted, Delta, OutputFinished
from weir.postprocess.v1.postprocess_pb2 import Open, PostprocessOutputFinished
from weir_chassis.errors import Internal, SlowConsumer, WeirError, WorkerLost
from weir_chassis.metrics import Metrics
from weir_chassis.testing import VirtualClock
from weir_router.attempt import Attempt
from weir_router.delivery import Event, Outbox
from weir_router.fleet.outstanding import Outstanding
from weir_router.journal import Journal
from weir_router.legs import Leg, Progress
from weir_router.metrics import RouterMetrics
from weir_router.streams.executor_stream import ExecutorStream
from weir_router.streams.postprocess_stream import PostprocessStream
from weir_router.write_pace import WritePace

STOP, LENGTH = FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH
HANDLE = 7


@dataclass
class Bench:
    """One attempt of n = 2 between two streams that nobody reads."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    outstanding: Outstanding = field(default_factory=Outstanding)
    slow: list[WeirError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.executor, self.lane = ExecutorStream("e:1", self.clock), PostprocessStream("p:1", self.clock)
        self.attempt = Attempt(
            handle=HANDLE,
            n=2,
            journal=Journal(2, max_tokens=1000),
            outbox=Outbox(4, WritePace()),
            accepted=Accepted(request_id="r", attempt=1),
            progress=Progress(),
            clock=self.clock,
            metrics=RouterMetrics(Metrics("test")),
            on_slow=self.slow.append,
        )
        self.attempt.postprocess(self.lane, Open(handle=HANDLE, n=2))
        self.attempt.enter(Leg(self.executor, self.outstanding.reserve(100)))
        self.attempt.submit(Submit(handle=HANDLE, token_ids=[1, 2, 3]))

    def finish(self, output_index: int, reason: FinishReason.ValueType = LENGTH) -> None:
        row = ExecutorOutputFinished(handle=HANDLE, output_index=output_index, finish_reason=reason)
        self.attempt.on_finished(row)

    def text_finished(self, output_index: int, stop: str | None = None) -> None:
        reason = STOP if stop else LENGTH
        row = PostprocessOutputFinished(handle=HANDLE, output_index=output_index, finish_reason=reason, stop=stop)
        self.attempt.on_text_finished(row)

    def delta(self, output_index: int = 0, *token_ids: int) -> None:
        self.attempt.on_delta(Delta(output_index=output_index, token_ids=token_ids or [5]), self.clock.monotonic())

    async def events(self) -> list[Event]:
        return await self.attempt.outbox.take()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.attempt.stop()
    bench.attempt.stop()
    assert bench.outstanding.routed_tokens == 0
    assert (bench.executor.num_live, bench.lane.num_live) == (0, 0)


async def test_accepted_comes_once_and_before_the_first_delta(bench: Bench) -> None:
    bench.delta()
    bench.attempt.on_accepted()
    first, second = await bench.events()
    assert isinstance(first, Accepted)
    assert isinstance(second, Delta)
    assert bench.outstanding.routed_tokens == 97


async def test_an_output_may_end_without_a_delta(bench: Bench) -> None:
    bench.text_finished(0)
    assert [type(event) for event in await bench.events()] == [Accepted, OutputFinished]


async def test_it_is_over_when_all_text_is_out_whatever_the_executor_still_says(bench: Bench) -> None:
    bench.finish(0)
    bench.finish(1)
    bench.text_finished(0)
    assert not bench.attempt.outbox.closed
    bench.text_finished(1)
    assert bench.attempt.outbox.closed
    assert not bench.attempt.ended.is_set()
    bench.attempt.on_failed(WorkerLost("after the last token"))
    assert bench.attempt.ended.is_set()
    assert bench.attempt.outbox.error is None


async def test_a_worker_that_dies_after_its_last_token_costs_nothing(bench: Bench) -> None:
    bench.finish(0)
    bench.finish(1)
    bench.attempt.on_failed(WorkerLost("while postprocess was still at it"))
    bench.text_finished(0)
    bench.text_finished(1)
    assert bench.attempt.outbox.error is None
    assert len(await bench.events()) == 3


async def test_a_worker_that_dies_before_it_has_drawn_all_fails_the_attempt(bench: Bench) -> None:
    bench.finish(0)
    bench.attempt.on_failed(WorkerLost("one output was still being drawn"))
    setback = bench.attempt.executor_setback
    assert setback is not None
    assert (setback.worker, type(setback.error)) == ("e:1", WorkerLost)
    assert await bench.events() == [], "whoever takes is woken"


async def test_an_executor_that_ends_a_request_without_ending_its_outputs_is_broken(bench: Bench) -> None:
    bench.finish(0)
    bench.attempt.on_ended(RequestEnd(handle=HANDLE))
    setback = bench.attempt.executor_setback
    assert setback is not None
    assert isinstance(setback.error, Internal)


async def test_what_comes_after_a_stop_string_is_nothing_new(bench: Bench) -> None:
    bench.text_finished(0, stop="x")
    bench.finish(0, FinishReason.FINISH_REASON_CANCELLED)
    bench.text_finished(0)
    bench.attempt.on_ended(RequestEnd(handle=HANDLE))
    events = await bench.events()
    assert [event for event in events if isinstance(event, OutputFinished)] == [
        OutputFinished(output_index=0, finish_reason=STOP, stop="x")
    ]


async def test_a_slow_client_is_given_up_at_once(bench: Bench) -> None:
    bench.delta(0, 1, 2, 3)
    bench.delta(1, 4, 5)
    assert [type(error) for error in bench.slow] == [SlowConsumer]
    assert (bench.executor.num_live, bench.lane.num_live) == (0, 0)
    bench.delta(0, 6)
    bench.text_finished(0)
    bench.attempt.on_ended(RequestEnd(handle=HANDLE))
    with pytest.raises(SlowConsumer):
        await bench.events()


async def test_tokens_are_counted_as_they_are_delivered(bench: Bench) -> None:
    bench.delta(0, 1, 2)
    await bench.clock.advance(1.5)
    bench.delta(1, 3)
    assert bench.attempt.progress.delivered_tokens == 3
    assert bench.attempt.progress.first_delta_at == 0.0
    assert bench.attempt.progress.last_delta_at == 1.5
