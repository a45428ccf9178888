"""Two executors, one answer: whoever speaks first gives it, and nothing is left of the other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.router_contract import Answer, collect, refusal
from fakes.executor import FakeExecutor
from fakes.suite import Suite, suite
from weir.executor.v1.executor_pb2 import ExecutorOutputFinished, GenerateResponse, RequestEnd, Submit
from weir.inference.v1.output_pb2 import FinishReason, TokenBatch
from weir.inference.v1.routing_pb2 import RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.inference.v1.stream_pb2 import Accepted
from weir.postprocess.v1.postprocess_pb2 import Open
from weir.router.v1 import router_pb2 as pb
from weir_chassis.durations import duration
from weir_chassis.errors import Internal
from weir_chassis.metrics import Metrics
from weir_chassis.testing import VirtualClock
from weir_router.attempt import Attempt
from weir_router.delivery import Outbox
from weir_router.fleet.outstanding import Outstanding
from weir_router.hedge import Second
from weir_router.journal import Journal
from weir_router.legs import Leg, Progress
from weir_router.metrics import RouterMetrics
from weir_router.streams.executor_stream import ExecutorStream
from weir_router.streams.postprocess_stream import PostprocessStream
from weir_router.write_pace import WritePace

HANDLE = 7
FIRST, OTHER = "memory:executor-0", "memory:executor-1"


# The race by itself.


class Race:
    """A request of one output on two executors that nobody reads; what they say is put in by hand."""

    def __init__(self) -> None:
        clock, self.metrics = VirtualClock(), RouterMetrics(Metrics("test"))
        self.counts = [Outstanding(), Outstanding()]
        self.streams = [ExecutorStream("e:0", clock), ExecutorStream("e:1", clock)]
        self.lane = PostprocessStream("p:0", clock)
        self.taken = 0
        self.attempt = Attempt(
            handle=HANDLE,
            n=1,
            journal=Journal(1, max_tokens=1000),
            outbox=Outbox(1000, WritePace()),
            accepted=Accepted(request_id="r", attempt=1),
            progress=Progress(),
            clock=clock,
            metrics=self.metrics,
            on_slow=lambda _: None,
        )
        submit = Submit(handle=HANDLE, token_ids=[1, 2, 3])
        self.attempt.postprocess(self.lane, Open(handle=HANDLE, n=1))
        self.attempt.enter(Leg(self.streams[0], self.counts[0].reserve(100)))
        self.attempt.submit(submit)
        second = Second(self.attempt, self.streams[1], Leg(self.streams[1], self.counts[1].reserve(100)), self.on_taken)
        self.attempt.hedge(second)
        second.submit(submit)

    def on_taken(self) -> None:
        self.taken += 1

    def accept(self, who: int) -> None:
        self.streams[who]._on_message(GenerateResponse(accepted_handles=[HANDLE]))

    def draw(self, who: int, index: int) -> None:
        """The token of this index, which is the same whoever draws it."""
        batch = TokenBatch(handles=[HANDLE], output_indexes=[0], first_token_indexes=[index], token_counts=[1])
        batch.token_ids.append(100 + index)
        self.streams[who]._on_message(GenerateResponse(tokens=batch))

    def end(self, who: int) -> None:
        row = ExecutorOutputFinished(handle=HANDLE, output_index=0, finish_reason=FinishReason.FINISH_REASON_LENGTH)
        self.streams[who]._on_message(GenerateResponse(finished=[row], ended=[RequestEnd(handle=HANDLE)]))

    def fail(self, who: int) -> None:
        sink = self.streams[who]._sinks.pop(HANDLE, None)
        if sink is not None:
            sink.on_failed(Internal("a step failed"))

    def tokens(self) -> list[int]:
        return [token for output in self.attempt.journal.resumed() for token in output.token_ids]

    def close(self) -> None:
        self.attempt.stop()
        assert [count.routed_tokens for count in self.counts] == [0, 0]
        assert [*(stream.num_live for stream in self.streams), self.lane.num_live] == [0, 0, 0]


async def test_the_first_word_decides_and_the_other_is_withdrawn_at_once() -> None:
    for winner in (0, 1):
        race = Race()
        race.accept(1 - winner)
        race.draw(winner, 0)
        assert [stream.num_live for stream in race.streams] == [winner == 0, winner == 1]
        assert race.counts[1 - winner].routed_tokens == 0
        race.draw(1 - winner, 0)  # it had already been on its way
        race.draw(winner, 1)
        race.end(winner)
        assert race.tokens() == [100, 101]
        assert race.attempt.progress.executors == (("e:0",) if winner == 0 else ("e:0", "e:1"))
        assert (race.taken, race.attempt.ended.is_set()) == (winner, True)
        race.close()


async def test_one_that_fails_leaves_the_race_to_the_other() -> None:
    for failed in (0, 1):
        race = Race()
        race.fail(failed)
        assert not race.attempt.needs_executor
        race.draw(1 - failed, 0)
        assert race.tokens() == [100]
        race.fail(1 - failed)
        assert race.attempt.needs_executor, "and now nobody is left"
        race.close()


async def test_an_answer_may_have_no_token() -> None:
    race = Race()
    race.end(1)
    assert race.attempt.ended.is_set()
    assert race.streams[0].num_live == 0
    race.close()


SAID = st.lists(st.tuples(st.sampled_from(["accept", "draw", "end", "fail"]), st.integers(0, 1)), max_size=20)


@given(SAID)
def test_whatever_the_two_say_in_whatever_order_there_is_one_answer_and_nothing_left(
    said: list[tuple[str, int]],
) -> None:
    async def run() -> None:
        race, drawn = Race(), [0, 0]
        for what, who in said:
            if HANDLE not in race.streams[who]._sinks:
                continue  # it is out of the race, or done
            if what == "draw":
                race.draw(who, drawn[who])
                drawn[who] += 1
            else:
                getattr(race, what)(who)
            assert race.taken <= 1
            assert race.tokens() == [100 + index for index in range(max(drawn))], "one after another, none twice"
            assert min(drawn) == 0, "only one of them is listened to"
            assert race.attempt.workers.second is None or race.streams[1].num_live == 1
        race.close()

    asyncio.run(run())


# Through a whole router.


def request(text: str = "hello", after: float | None = 0.05, n: int = 1, **stopping: Any) -> pb.GenerateRequest:
    routing = RoutingOptions()
    if after is not None:
        routing.hedge_after.CopyFrom(duration(after))
    return pb.GenerateRequest(
        text=text,
        sampling=SamplingParameters(n=n, seed=3),
        stopping=StoppingConditions(**stopping),
        routing=routing,
    )


async def first_goes_to_0(running: Suite) -> None:
    running.fakes.executors[1].foreign_tokens = 10_000
    await running.until(lambda: running.fleet.snapshot().executors[1].foreign_tokens > 0)


def hedges(running: Suite, outcome: str) -> float:
    return running.chassis.metrics.registry.get_sample_value("weir_router_hedges_total", {"outcome": outcome}) or 0.0


async def check_withdrawn(running: Suite, executor: FakeExecutor) -> None:
    await running.until(lambda: not executor.live)
    assert [abort.HasField("output_index") for abort in executor.aborts] == [False]


@pytest.mark.parametrize("n", [1, 3])
async def test_a_slow_first_is_overtaken_by_a_second(n: int) -> None:
    slow, quick = FakeExecutor(), FakeExecutor()
    slow.pause_after = 0
    async with suite(executors=[slow, quick]) as running:
        await first_goes_to_0(running)
        answer = await collect(running.router.Generate(request(n=n)))
        answer.check_complete(n)
        assert answer.texts[0] == "hello"
        assert (answer.receipt.hedged, answer.receipt.worker, answer.receipt.attempts) == (True, OTHER, 2)
        assert answer.receipt.continuations == 0
        assert slow.submits[0].sampling == quick.submits[0].sampling, "the same seed, and so the same tokens"
        await check_withdrawn(running, slow)
        assert hedges(running, "won") == 1


async def test_a_first_that_answers_in_time_stays_alone() -> None:
    executors = [FakeExecutor(), FakeExecutor()]
    async with suite(executors=executors) as running:
        answer = await collect(running.router.Generate(request(after=30.0)))
        assert (answer.receipt.hedged, answer.receipt.attempts) == (False, 1)
        assert sum(len(executor.submits) for executor in executors) == 1


async def test_a_first_that_speaks_up_in_time_wins() -> None:
    slow, slower = FakeExecutor(), FakeExecutor()
    slow.pause_after = slower.pause_after = 0
    async with suite(executors=[slow, slower]) as running:
        await first_goes_to_0(running)
        call = asyncio.create_task(collect(running.router.Generate(request())))
        await running.until(lambda: bool(slower.submits))
        slow.resume()
        answer = await call
        assert (answer.texts, answer.receipt.worker) == ({0: "hello"}, FIRST)
        assert answer.receipt.hedged
        await check_withdrawn(running, slower)
        assert hedges(running, "lost") == 1


async def test_a_second_that_fails_changes_nothing() -> None:
    slow, bad = FakeExecutor(), FakeExecutor()
    slow.pause_after, bad.refusal = 0, Internal("a step failed")
    async with suite(executors=[slow, bad]) as running:
        await first_goes_to_0(running)
        call = asyncio.create_task(collect(running.router.Generate(request())))
        await running.until(lambda: hedges(running, "failed") == 1)
        slow.resume()
        answer = await call
        assert (answer.texts, answer.receipt.worker) == ({0: "hello"}, FIRST)


async def test_a_first_that_dies_while_a_second_is_there_is_not_missed() -> None:
    dying, slow = FakeExecutor(), FakeExecutor()
    dying.pause_after = slow.pause_after = 0
    async with suite(executors=[dying, slow], retry_budget_share=0.0, retry_budget_floor=1) as running:
        await first_goes_to_0(running)
        call = asyncio.create_task(collect(running.router.Generate(request())))
        await running.until(lambda: bool(slow.submits))
        dying.crash.crash()
        slow.resume()
        answer = await call
        assert (answer.texts, answer.receipt.worker, answer.receipt.attempts) == ({0: "hello"}, OTHER, 2)


@pytest.mark.parametrize(("num_executors", "floor"), [(1, 100), (2, 0)], ids=["nobody else", "no budget"])
async def test_without_a_second_the_first_is_waited_for(num_executors: int, floor: int) -> None:
    executors = [FakeExecutor() for _ in range(num_executors)]
    for executor in executors:
        executor.pause_after = 0
    async with suite(executors=executors, retry_budget_floor=floor) as running:
        call = asyncio.create_task(collect(running.router.Generate(request(after=0.0))))
        await running.until(lambda: any(executor.submits for executor in executors))
        await asyncio.sleep(0.05)
        for executor in executors:
            executor.resume()
        answer = await call
        assert (answer.texts, answer.receipt.hedged) == ({0: "hello"}, False)
        assert sum(len(executor.submits) for executor in executors) == 1


async def test_a_model_may_be_configured_for_it(tmp_path: Path) -> None:
    config = tmp_path / "routing.toml"
    config.write_text("[models.bytes]\nhedge_after_seconds = 0.02\n")
    executors = [FakeExecutor(), FakeExecutor()]
    executors[0].pause_after = 0
    async with suite(executors=executors, config_file=config) as running:
        await first_goes_to_0(running)
        answer = await collect(running.router.Generate(request(after=None)))
        assert (answer.texts, answer.receipt.hedged) == ({0: "hello"}, True)


async def test_a_client_that_leaves_during_the_race_leaves_nothing() -> None:
    executors = [FakeExecutor(), FakeExecutor()]
    for executor in executors:
        executor.pause_after = 0
    async with suite(executors=executors) as running:
        call = running.router.Generate(request())
        reading = asyncio.create_task(collect(call))
        await running.until(lambda: all(executor.submits for executor in executors))
        call.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await running.until_idle()
        assert hedges(running, "over") == 1


# A first that says nothing to anybody: `stall_seconds` are a second's fraction, `no_progress_seconds` a minute.

STALL: dict[str, Any] = {"stall_seconds": 0.2, "eject_first_seconds": 0.1, "eject_longest_seconds": 0.2}


@pytest.mark.parametrize("deaf", [False, True], ids=["makes no steps", "answers nothing"])
async def test_a_worker_that_hangs_costs_its_requests_a_moment(deaf: bool) -> None:
    hung, good = FakeExecutor(), FakeExecutor()
    async with suite(executors=[hung, good], probe_timeout_seconds=0.1, **STALL) as running:
        await first_goes_to_0(running)
        hung.running.clear()
        hung.deaf = deaf
        async with asyncio.timeout(20):
            answers = await asyncio.gather(
                *(collect(running.router.Generate(request(after=None), timeout=60)) for _ in range(8))
            )
        assert [answer.texts for answer in answers] == [{0: "hello"}] * 8
        assert any(answer.receipt.hedged for answer in answers)
        assert running.fleet.snapshot().executors[0].ejected, "nobody else is sent there to wait"
        answer = await collect(running.router.Generate(request(after=None)))
        assert (answer.receipt.worker, answer.receipt.attempts) == (OTHER, 1)
        hung.running.set()
        good.foreign_tokens = 0
        async with asyncio.timeout(20):
            while running.fleet.snapshot().executors[0].ejected or not hung.steps:
                await collect(running.router.Generate(request(after=None)))


@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_whose_worker_hangs_in_mid_answer_goes_on_with_another(n: int) -> None:
    hung, good = FakeExecutor(), FakeExecutor()
    hung.pause_after = 3
    async with suite(executors=[hung, good], **STALL) as running:
        await first_goes_to_0(running)
        answer = Answer()
        call = asyncio.create_task(collect(running.router.Generate(request("hello you", after=None, n=n)), answer))
        await running.until(lambda: sum(map(len, answer.token_ids.values())) == 3 * n)
        await call
        answer.check_complete(n)
        assert answer.texts[0] == "hello you"
        assert (answer.receipt.continuations, answer.continued.exact, answer.receipt.worker) == (1, True, OTHER)
        await check_withdrawn(running, hung)


async def test_a_stream_whose_worker_comes_round_in_time_stays_where_it_is() -> None:
    hung, slow = FakeExecutor(), FakeExecutor()
    hung.pause_after, slow.pause_after = 3, 0
    async with suite(executors=[hung, slow], **STALL) as running:
        await first_goes_to_0(running)
        call = asyncio.create_task(collect(running.router.Generate(request("hello you", after=None))))
        await running.until(lambda: bool(slow.submits))
        assert list(slow.submits[0].resumed_outputs[0].token_ids) == [*b"hel"]
        hung.resume()
        answer = await call
        assert (answer.texts, answer.receipt.worker) == ({0: "hello you"}, FIRST)
        assert (answer.receipt.continuations, "continued" in answer.kinds) == (0, False)
        await check_withdrawn(running, slow)


async def test_a_worker_that_hangs_alone_may_come_round() -> None:
    async with suite(**STALL) as running:
        running.executor.running.clear()
        call = asyncio.create_task(collect(running.router.Generate(request(after=None))))
        await running.until(lambda: bool(running.executor.submits))
        await asyncio.sleep(0.5)
        assert not call.done()
        running.executor.running.set()
        answer: Answer = await call
        assert (answer.texts, answer.receipt.attempts) == ({0: "hello"}, 1)


async def test_a_request_that_hangs_whoever_is_given_it_is_given_to_three_at_most() -> None:
    executors = [FakeExecutor() for _ in range(5)]
    for executor in executors:
        executor.running.clear()
    async with suite(executors=executors, no_progress_seconds=1.5, **STALL) as running:
        reason, _, _ = await refusal(running.router.Generate(request(after=None), timeout=60))
        assert reason == "WORKER_LOST"
        assert sum(len(executor.submits) for executor in executors) <= 3
        for executor in executors:
            executor.running.set()
