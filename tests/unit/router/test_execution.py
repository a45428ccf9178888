"""Streams whose workers fail at every token: what the client gets is what it would have got, and nothing is left.

`suite` ends each test by checking that no lease, no request and no reservation is left anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import compress
from random import Random
from typing import Any

import pytest

from contract.router_contract import Answer, collect, refusal
from fakes.executor import FakeExecutor
from fakes.postprocess import FakePostprocess
from fakes.suite import Suite, suite
from weir.inference.v1 import routing_pb2
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.routing_pb2 import RoutingOptions
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import Draining, Internal, InvalidArgument, Overloaded, reason_name
from weir_chassis.status import from_rpc_error

SEED = 11


def request(text: str, *, mode: Any = None, n: int = 1, logprobs: int | None = None, **stopping: Any) -> Any:
    return pb.GenerateRequest(
        text=text,
        sampling=SamplingParameters(n=n, seed=3, logprobs=logprobs),
        stopping=StoppingConditions(**stopping),
        routing=RoutingOptions(continuation=mode),
    )


STREAMS: dict[str, pb.GenerateRequest] = {
    "plain": request("abcdefg"),
    "several": request("abcde", n=3),
    "logprobs": request("abcde", n=2, logprobs=2),
    "length": request("abcdef", n=2, max_tokens=8, min_tokens=8),
    # The text before a stop string is held back at nearly every place.
    "stop": request("aaSTSTOPab", n=2, stop=["STOP", "STX"], ignore_eos=True),
    "stop_in_output": request("abSTOPcd", stop=["STOP"], include_stop_in_output=True, ignore_eos=True),
    "stop_token": request("abcdef", n=2, stop_token_ids=[ord("e")]),
    # Half characters are held back, too.
    "characters": request("hé€🦊x", n=2),
}


@dataclass(frozen=True)
class Fault:
    """What happens to the worker, and how it is made well again; `of_text`: to the postprocess replica."""

    strike: Callable[[Any], None]
    heal: Callable[[Any], None] = lambda worker: worker.crash.revive()
    of_text: bool = False
    reason: str = "WORKER_LOST"


def _nothing(_: Any) -> None:
    """A request is stalled as it is paused."""


FAULTS: dict[str, Fault] = {
    "dies": Fault(lambda fake: fake.crash.crash()),
    "drains": Fault(lambda fake: fake.crash.crash(Draining("it has shut down")), reason="DRAINING"),
    "hangs": Fault(lambda fake: fake.running.clear(), lambda fake: fake.running.set()),
    "stalls": Fault(_nothing, _nothing),
    "fails": Fault(lambda fake: fake.fail_live(Internal("a step failed")), _nothing, reason="INTERNAL"),
    "text dies": Fault(lambda fake: fake.crash.crash(), of_text=True),
    "text drains": Fault(lambda fake: fake.crash.crash(Draining("it has shut down")), of_text=True, reason="DRAINING"),
    "text hangs": Fault(
        lambda fake: setattr(fake, "silent", True), lambda fake: setattr(fake, "silent", False), of_text=True
    ),
    "text fails": Fault(lambda fake: fake.fail_live(Internal("no text")), _nothing, of_text=True, reason="INTERNAL"),
}
# A stream that hangs is found by its silence, and a request that stalls on a stream which speaks by its own.
_QUICK = {name: {"no_progress_seconds": 0.05} for name in ("hangs", "text hangs")}
_PATIENT = {"no_token_seconds": 0.05}


def two_of_each(**settings: Any) -> AbstractAsyncContextManager[Suite]:
    return suite(
        executors=[FakeExecutor(), FakeExecutor()],
        postprocessors=[FakePostprocess(), FakePostprocess()],
        **{"retry_budget_floor": 1000, **settings},
    )


# What is found by a timer takes longer, and a drain is a death with another reason: with fewer streams.
_BY_TIMERS = {*_QUICK, "stalls"}
_FEW = {*_BY_TIMERS, "drains", "text drains"}
_CELLS = [(name, kind) for name in FAULTS for kind in (("several", "stop") if name in _FEW else STREAMS)]


@pytest.mark.parametrize(("name", "kind"), _CELLS)
async def test_a_worker_that_fails_at_any_token_changes_nothing_of_the_answer(name: str, kind: str) -> None:
    message, fault = STREAMS[kind], FAULTS[name]
    async with two_of_each(**_QUICK.get(name, _PATIENT if name == "stalls" else {})) as running:
        wanted = await collect(running.router.Generate(message))
        answers = []
        for position in range(max(map(len, wanted.token_ids.values()))):
            answers.append(await struck(running, message, fault, position))
            check_equal(answers[-1], wanted, message.sampling.n)
        # On a busy machine a timer finds workers, too, that nothing has befallen: then there is one more attempt.
        as_struck = [not (name in _BY_TIMERS and answer.receipt.attempts > 2) for answer in answers]
        assert any(as_struck)
        for position, answer in compress(enumerate(answers), as_struck):
            check_told(answer, fault, position)


async def struck(running: Suite, message: pb.GenerateRequest, fault: Fault, position: int, *, seen: str = "") -> Answer:
    """The answer to a request, one of whose workers is struck when each of its outputs has so many tokens.

    `seen`: and when its client has read this.
    """
    answer = Answer()
    executors = running.fakes.executors
    for executor in executors:
        executor.pause_after = position
    task = asyncio.create_task(collect(running.router.Generate(message, timeout=20), answer))
    await running.until(lambda: _all_at(executors, position) and answer.texts.get(0, "").startswith(seen))
    fakes: list[Any] = [*(running.fakes.postprocessors if fault.of_text else executors)]
    await running.until(lambda: sum(bool(fake.live) for fake in fakes) == 1)
    (worker,) = [fake for fake in fakes if fake.live]
    fault.strike(worker)
    for executor in executors:
        if fault.of_text or executor is not worker:
            executor.resume()
    await task
    fault.heal(worker)
    worker.resume() if isinstance(worker, FakeExecutor) else None
    await running.until_serving()
    return answer


def _all_at(executors: list[FakeExecutor], position: int) -> bool:
    places = [place for executor in executors for place in executor.positions]
    return bool(places) and all(place == position for place in places)


def check_equal(answer: Answer, wanted: Answer, n: int = 1) -> None:
    answer.check_complete(n)
    assert (answer.token_ids, answer.texts, answer.finished) == (wanted.token_ids, wanted.texts, wanted.finished)
    assert answer.logprobs == wanted.logprobs
    assert answer.usage == wanted.usage


def check_told(answer: Answer, fault: Fault, position: int) -> None:
    """Of a worker that is replaced after a token, and of none before."""
    receipt, told = answer.receipt, answer.kinds.count("continued")
    assert told == receipt.continuations
    # A token may be drawn before the end of a replica is known.
    assert told == (1 if position else 0) or (fault.of_text and told == 1)
    assert receipt.attempts == 2
    assert len(receipt.workers) == (1 if fault.of_text else 2)
    assert receipt.workers[-1] == receipt.worker
    if told:
        assert (answer.continued.attempt, answer.continued.reason, answer.continued.exact) == (2, fault.reason, True)


@pytest.mark.parametrize("seed", range(8))
async def test_workers_that_fail_at_random_while_streams_run_change_nothing(seed: int) -> None:
    """Several at once, at whatever point they have come to, again and again."""
    rng = Random(SEED + seed)
    async with two_of_each(max_continuations=100, continuation_wait_seconds=10.0) as running:
        kinds = [rng.choice(sorted(STREAMS)) for _ in range(12)]
        wanted = {kind: await collect(running.router.Generate(STREAMS[kind])) for kind in set(kinds)}
        for executor in running.fakes.executors:
            executor.step_seconds = 0.005
        answers = [Answer() for _ in kinds]
        tasks = [
            asyncio.create_task(collect(running.router.Generate(STREAMS[kind], timeout=60), answer))
            for kind, answer in zip(kinds, answers, strict=True)
        ]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(rng.uniform(0, 0.03))
            fakes: list[Any] = [*running.fakes.executors, *running.fakes.postprocessors]
            fake = rng.choice(fakes)
            fake.crash.crash(rng.choice([None, Draining("it has shut down")]))
            await asyncio.sleep(rng.uniform(0, 0.03))
            fake.crash.revive()
            await running.until_serving()
            # Two that fail it before its first token end a request.
            await running.until(
                lambda: all(t.done() or "delta" in answer.kinds for t, answer in zip(tasks, answers, strict=True))
            )
        for task, kind in zip(tasks, kinds, strict=True):
            check_equal(await task, wanted[kind], STREAMS[kind].sampling.n)


# What the next worker is given.


async def test_what_the_next_executor_is_given() -> None:
    message = request("abcdefg", n=2, max_tokens=6)
    async with two_of_each() as running:
        answer = await struck(running, message, FAULTS["dies"], 3)
        first, second = sorted(
            (fake.submits[0] for fake in running.fakes.executors), key=lambda s: len(s.resumed_outputs)
        )
        resumed = {output.output_index: bytes(output.token_ids).decode() for output in second.resumed_outputs}
        assert (len(first.resumed_outputs), resumed) == (0, {0: "abc", 1: "bcd"})
        for field in ("token_ids", "block_hashes", "sampling", "stopping", "model_version", "request_id", "priority"):
            assert getattr(first, field) == getattr(second, field)
        assert second.time_left.ToTimedelta() < first.time_left.ToTimedelta()
        assert list(answer.receipt.workers) == [f"memory:executor-{i}" for i in _order(running, first)]


def _order(running: Suite, first: Any) -> tuple[int, int]:
    return (0, 1) if running.executor.submits[0] is first else (1, 0)


async def test_what_the_next_replica_is_given_is_where_the_client_is() -> None:
    """`ST` may be the beginning of a stop string: it is drawn, and not delivered."""
    message = request("abST", stop=["STOP"], max_tokens=6, ignore_eos=True)
    async with two_of_each() as running:
        answer = await struck(running, message, FAULTS["text dies"], 4, seen="ab")
        opened = [opening for fake in running.fakes.postprocessors for opening in fake.opens]
        resumed = [bytes(output.token_ids).decode() for opening in opened for output in opening.resumed_outputs]
        assert resumed == ["ab"]
        assert answer.texts == {0: "abSTab"}


# When it does not go on.


async def lost(running: Suite, message: pb.GenerateRequest) -> tuple[Answer, str]:
    """What a stream brings whose executor dies after two tokens, and the reason of its end."""
    for executor in running.fakes.executors:
        executor.pause_after = 2
    answer = Answer()
    task = asyncio.create_task(collect(running.router.Generate(message, timeout=20), answer))
    await running.until(lambda: _all_at(running.fakes.executors, 2) and "delta" in answer.kinds)
    (worker,) = [fake for fake in running.fakes.executors if fake.live]
    worker.crash.crash()
    for executor in running.fakes.executors:
        executor.resume()
    error = (await asyncio.gather(task, return_exceptions=True))[0]
    return answer, "" if isinstance(error, Answer) else reason_name(from_rpc_error(error).reason)  # type: ignore[arg-type]


async def test_a_client_may_not_want_it() -> None:
    async with two_of_each() as running:
        answer, reason = await lost(running, request("abcd", mode=routing_pb2.CONTINUATION_MODE_NONE))
        assert reason == "WORKER_LOST"
        assert "continued" not in answer.kinds


async def test_so_may_its_model(tmp_path: Any) -> None:
    config = tmp_path / "routing.toml"
    config.write_text('[models.bytes]\ncontinuation = "none"\n')
    async with two_of_each(config_file=config) as running:
        assert (await lost(running, request("abcd")))[1] == "WORKER_LOST"
    async with two_of_each(config_file=config) as running:
        assert (await lost(running, request("abcd", mode=routing_pb2.CONTINUATION_MODE_EXACT)))[1] == ""


async def test_a_stream_that_has_drawn_more_than_is_kept_cannot_go_on() -> None:
    async with two_of_each(journal_tokens=1) as running:
        assert (await lost(running, request("abcd")))[1] == "WORKER_LOST"
    async with two_of_each(journal_tokens=1) as running:
        await collect(running.router.Generate(request("abcd")))


async def test_another_revision_is_never_gone_on_with() -> None:
    other = ModelVersion(model="bytes", revision="r2", tokenizer_hash="0" * 32)
    for mode in (routing_pb2.CONTINUATION_MODE_EXACT, routing_pb2.CONTINUATION_MODE_BEST_EFFORT):
        async with suite(executors=[FakeExecutor(), FakeExecutor(other)]) as running:
            assert (await lost(running, request("abcd", mode=mode)))[1] == "WORKER_LOST"
            assert not running.fakes.executors[1].submits


async def test_other_kernels_are_gone_on_with_by_those_only_whom_it_is_enough_and_they_are_told() -> None:
    exact, best = routing_pb2.CONTINUATION_MODE_EXACT, routing_pb2.CONTINUATION_MODE_BEST_EFFORT
    for mode, ended in ((exact, "WORKER_LOST"), (best, "")):
        executors = [FakeExecutor(compute="bfloat16, avx512"), FakeExecutor(compute="int8, avx2")]
        async with suite(executors=executors) as running:
            answer, reason = await lost(running, request("abcd", mode=mode))
            assert reason == ended
            if not ended:
                assert answer.continued.exact is False
                assert answer.texts == {0: "abcd"}


async def test_what_draws_anew_is_gone_on_with_by_those_only_whom_it_is_enough_though_all_are_alike() -> None:
    exact, best = routing_pb2.CONTINUATION_MODE_EXACT, routing_pb2.CONTINUATION_MODE_BEST_EFFORT
    for mode, ended in ((exact, "WORKER_LOST"), (best, "")):
        async with suite(executors=[FakeExecutor(draws_anew=True), FakeExecutor(draws_anew=True)]) as running:
            answer, reason = await lost(running, request("abcd", mode=mode))
            assert reason == ended
            assert ended or answer.continued.exact is False


async def test_among_others_one_of_the_same_kernels_is_preferred() -> None:
    executors = [FakeExecutor(compute=compute) for compute in ("one", "another", "one", "another")]
    async with suite(executors=executors) as running:
        for _ in range(4):
            answer, _ = await lost(running, request("abcd", mode=routing_pb2.CONTINUATION_MODE_BEST_EFFORT))
            assert answer.continued.exact is True
            places = [int(worker.rpartition("-")[2]) for worker in answer.receipt.workers]
            assert places[0] % 2 == places[1] % 2
            for executor in executors:
                executor.crash.revive()
            await running.until_serving()


async def test_what_the_client_did_wrong_is_told_and_not_tried_elsewhere() -> None:
    async with two_of_each() as running:
        message, fault = request("abcd"), Fault(lambda fake: fake.fail_live(InvalidArgument("x", "is wrong")), _nothing)
        with pytest.raises(Exception, match="is wrong"):
            await struck(running, message, fault, 2)
        assert sum(len(fake.submits) for fake in running.fakes.executors) == 1
        for executor in running.fakes.executors:
            executor.resume()


async def test_the_first_time_is_free_and_the_next_is_paid_for() -> None:
    """A worker may have had more streams than the budget has tries."""
    async with suite(executors=[FakeExecutor(), FakeExecutor()], retry_budget_floor=0, retry_budget_share=0) as running:
        assert (await lost(running, request("abcd")))[1] == ""
    executors = [FakeExecutor() for _ in range(3)]
    async with suite(executors=executors, retry_budget_floor=0, retry_budget_share=0) as running:
        for executor in executors:
            executor.pause_after = 2
        task = asyncio.create_task(refusal(running.router.Generate(request("abcd"), timeout=20)))
        for dead in (1, 2):
            await running.until(lambda: _all_at(executors, 2))
            (worker,) = [fake for fake in executors if fake.live]
            worker.crash.crash()
            await running.until(lambda dead=dead: sum(fake.crash.down for fake in executors) == dead)  # type: ignore[misc]
            await running.until(lambda worker=worker: not worker.live)  # type: ignore[misc]
        assert (await task)[0] == "WORKER_LOST"
        assert sum(len(fake.submits) for fake in executors) == 2


async def test_a_stream_is_not_handed_on_for_ever() -> None:
    executors = [FakeExecutor() for _ in range(4)]
    async with suite(executors=executors, max_continuations=2) as running:
        for executor in executors:
            executor.pause_after = 2
        task = asyncio.create_task(refusal(running.router.Generate(request("abcd"), timeout=20)))
        await running.until(lambda: _all_at(executors, 2))
        (first,) = [fake for fake in executors if fake.live]
        for executor in executors:
            executor.refusal = Internal("a step failed")
        first.crash.crash()
        reason, _, _ = await task
        assert reason == "INTERNAL"
        assert sum(len(fake.submits) for fake in executors) == 3


# When nobody is there, or has room.


async def test_a_stream_waits_a_while_for_room() -> None:
    executors = [FakeExecutor() for _ in range(3)]
    async with suite(executors=executors, continuation_wait_seconds=20.0, max_continuations=1) as running:
        for executor in executors:
            executor.pause_after = 2
        answer = Answer()
        task = asyncio.create_task(collect(running.router.Generate(request("abcd"), timeout=30), answer))
        await running.until(lambda: _all_at(executors, 2))
        (first,) = [fake for fake in executors if fake.live]
        others = [fake for fake in executors if fake is not first]
        for other in others:
            other.refusal = Overloaded("full")
        first.crash.crash()
        await running.until(lambda: all(len(other.submits) >= 2 for other in others), seconds=20)
        for other in others:
            other.refusal = None
            other.resume()
        assert (await task).texts == {0: "abcd"}
        assert answer.kinds.count("continued") == answer.receipt.continuations == 1
        assert answer.receipt.attempts == 1 + sum(len(other.submits) for other in others)


async def test_a_stream_does_not_wait_for_room_for_ever() -> None:
    async with two_of_each(continuation_wait_seconds=0.6) as running:
        for executor in running.fakes.executors:
            executor.pause_after = 2
        task = asyncio.create_task(refusal(running.router.Generate(request("abcd"), timeout=30)))
        await running.until(lambda: _all_at(running.fakes.executors, 2))
        (first,) = [fake for fake in running.fakes.executors if fake.live]
        for executor in running.fakes.executors:
            executor.refusal = Overloaded("full")
        first.crash.crash()
        assert (await task)[0] == "OVERLOADED"


async def test_a_stream_waits_a_while_for_somebody_to_go_on_with() -> None:
    async with suite(continuation_wait_seconds=10.0) as running:
        running.executor.pause_after = 2
        answer = Answer()
        task = asyncio.create_task(collect(running.router.Generate(request("abcd"), timeout=20), answer))
        await running.until(lambda: running.executor.positions == [2] and "delta" in answer.kinds)
        for fake in (running.executor, running.postprocess):
            fake.crash.crash()
        await running.until(lambda: running.num_serving() == 1)
        assert not task.done()
        running.executor.resume()
        for fake in (running.executor, running.postprocess):
            fake.crash.revive()
        assert (await task).texts == {0: "abcd"}
        assert answer.receipt.continuations == 2


async def test_a_client_that_leaves_while_its_stream_waits_leaves_nothing() -> None:
    async with suite(continuation_wait_seconds=10.0) as running:
        running.executor.pause_after = 2
        call, answer = running.router.Generate(request("abcd"), timeout=20), Answer()
        task = asyncio.create_task(collect(call, answer))
        await running.until(lambda: "delta" in answer.kinds)
        running.executor.crash.crash()
        await running.until(lambda: running.num_serving() == 2)
        call.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await running.until_idle()


async def test_continuations_are_counted() -> None:
    async with two_of_each() as running:
        await struck(running, request("abcd"), FAULTS["dies"], 2)
        await struck(running, request("abcd"), FAULTS["text dies"], 2)
        sample = running.chassis.metrics.registry.get_sample_value
        for worker in ("executor", "postprocess"):
            labels = {"worker": worker, "reason": "WORKER_LOST", "exact": "true"}
            assert sample("weir_router_continuations_total", labels) == 1
        assert sample("weir_router_attempts_total", {"end": "WORKER_LOST"}) == 2
        assert sample("weir_router_attempts_total", {"end": "OK"}) == 2
