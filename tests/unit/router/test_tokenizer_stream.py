"""Asks that are there together go out as one message; each answer goes to the task that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc
import pytest

from unit.router.scripted_call import ScriptedCall
from weir.inference.v1.model_pb2 import ModelVersion
from weir.tokenizer.v1.tokenizer_pb2 import (
    Answer,
    ApplyChatTemplateRequest,
    ApplyChatTemplateResponse,
    Ask,
    EncodeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from weir_chassis.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    Internal,
    InvalidArgument,
    Overloaded,
    WeirError,
    WorkerLost,
)
from weir_chassis.limits import MAX_MESSAGE_BYTES
from weir_chassis.status import to_failure
from weir_chassis.testing import VirtualClock, settle
from weir_router.faults.table import Where
from weir_router.faults.uses import Uses
from weir_router.streams.tokenizer_stream import TokenizerStream

LIMIT = 30.0


class Judged:
    """What a breaker is told, one word for each ask."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self, _: str) -> Any:
        return self

    def succeeded(self) -> None:
        self.told.append("succeeded")

    def failed(self, error: WeirError, where: Where) -> None:
        self.told.append(f"{type(error).__name__} {where.value}")

    def ended(self) -> None:
        self.told.append("ended")


@dataclass
class Wire:
    stream: TokenizerStream
    call: ScriptedCall
    clock: VirtualClock
    run: asyncio.Task[None]
    judged: Judged

    async def ask(self, text: str = "x", left: float | None = None) -> asyncio.Task[Answer]:
        task = asyncio.create_task(self.stream.ask(Ask(tokenize=TokenizeRequest(texts=[text])), left))
        await settle(1)
        return task

    async def answer(self, *answers: Answer) -> None:
        self.call.answer(EncodeResponse(answers=answers))
        await settle()

    @property
    def sent(self) -> list[list[tuple[int, str]]]:
        return [[(ask.handle, ask.tokenize.texts[0]) for ask in message.asks] for message in self.call.written]

    @property
    def withdrawn(self) -> list[int]:
        return [handle for message in self.call.written for handle in message.withdrawn_handles]


def tokenized(handle: int, model: str = "m") -> Answer:
    return Answer(handle=handle, tokenized=TokenizeResponse(model_version=ModelVersion(model=model)))


def failed(handle: int, error: WeirError) -> Answer:
    return Answer(handle=handle, failure=to_failure(error))


@asynccontextmanager
async def wire(pause_seconds: float = 0.0) -> AsyncIterator[Wire]:
    clock, judged, call = VirtualClock(), Judged(), ScriptedCall()
    stream = TokenizerStream("t:1", clock, LIMIT, Uses(judged.begin), lambda: pause_seconds)
    run = asyncio.create_task(stream.run(cast("Any", call)))
    await settle()
    yield Wire(stream, call, clock, run, judged)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    assert stream.num_live == 0
    await settle()
    left = {task.get_name() for task in asyncio.all_tasks()}
    assert not left & {"tokenizer-clock", "duplex-writer"}, "a task of the stream outlives it"


async def test_asks_of_one_turn_are_one_message_and_answers_come_in_any_order() -> None:
    async with wire() as on:
        tasks = [asyncio.create_task(on.stream.ask(_text(text), None)) for text in "abc"]
        await settle()
        assert on.sent == [[(1, "a"), (2, "b"), (3, "c")]]
        await on.answer(tokenized(3, "third"), tokenized(1, "first"))
        await on.answer(tokenized(2, "second"))
        answers = [(await task).tokenized.model_version.model for task in tasks]
        assert answers == ["first", "second", "third"]
        assert on.judged.told == ["succeeded"] * 3


async def test_what_comes_while_a_write_is_under_way_is_joined_up_to_a_size() -> None:
    async with wire() as on:
        on.call.writable.clear()
        tasks = [await on.ask("first")]
        await settle()
        tasks += [await on.ask(text) for text in ("b", "c", "x" * (1 << 20), "d")]
        on.call.writable.set()
        await settle()
        assert [[len(text) for _, text in message] for message in on.sent] == [[5], [1, 1], [1 << 20], [1]]
        await on.answer(*map(tokenized, range(1, 6)))
        await asyncio.gather(*tasks)


async def test_what_a_tokenizer_takes_in_one_message_is_all_that_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weir_router.streams.tokenizer_stream.MAX_JOINED", 3)
    async with wire() as on:
        tasks = [asyncio.create_task(on.stream.ask(_text(text), None)) for text in "abcdefg"]
        await settle()
        for task in tasks:
            task.cancel()
        await settle()
        assert [len(message.asks) for message in on.call.written] == [3, 3, 1, 0, 0, 0]
        assert [len(message.withdrawn_handles) for message in on.call.written] == [0, 0, 0, 3, 3, 1]
        assert on.withdrawn == [1, 2, 3, 4, 5, 6, 7]


async def test_an_answer_to_somebody_who_has_just_gone_does_not_disturb_the_others() -> None:
    async with wire() as on:
        gone, stays = await on.ask("a"), await on.ask("b")
        await settle()
        gone.cancel()  # and it has not had its turn when the answer is read
        on.stream._on_message(EncodeResponse(answers=[tokenized(1), tokenized(2)]))
        assert (await stays).HasField("tokenized")
        await asyncio.wait([gone])
        assert gone.cancelled()
        assert not on.run.done()


async def test_asks_of_many_turns_are_joined_while_the_loop_is_busy() -> None:
    async with wire(pause_seconds=0.005) as on:
        tasks = []
        for text in "abc":
            tasks.append(await on.ask(text))
            await on.clock.advance(0.001)
        assert on.sent == []
        await on.clock.advance(0.002)
        assert on.sent == [[(1, "a"), (2, "b"), (3, "c")]]
        await on.answer(*map(tokenized, (1, 2, 3)))
        await asyncio.gather(*tasks)


async def test_an_ask_says_how_long_it_is_waited_for() -> None:
    async with wire() as on:
        tasks = [await on.ask(left=left) for left in (None, 2.5, 100.0)]
        await settle()
        asks = [ask for message in on.call.written for ask in message.asks]
        assert [ask.time_left.ToTimedelta().total_seconds() for ask in asks] == [LIMIT, 2.5, LIMIT]
        await on.answer(*map(tokenized, (1, 2, 3)))
        await asyncio.gather(*tasks)
        with pytest.raises(DeadlineExceeded):
            await on.stream.ask(_text("x"), 0.0)


async def test_an_ask_fails_by_itself() -> None:
    async with wire() as on:
        failing, other = await on.ask(), await on.ask()
        await on.answer(failed(1, Overloaded("full")), tokenized(2), tokenized(9, "nobody's"))
        with pytest.raises(Overloaded, match="full"):
            await failing
        assert (await other).HasField("tokenized")
        assert on.judged.told == ["RemoteOverloaded before_first_token", "succeeded"]


@pytest.mark.parametrize(
    ("left", "error", "raised"),
    [
        (None, DeadlineExceeded("late"), WorkerLost),
        (LIMIT + 1, DeadlineExceeded("late"), WorkerLost),
        (LIMIT, DeadlineExceeded("late"), DeadlineExceeded),
        (None, Cancelled("its server was stopped"), WorkerLost),
        (None, Draining("stops"), Draining),
    ],
)
async def test_whose_fault_a_failure_is(left: float | None, error: WeirError, raised: type[WeirError]) -> None:
    async with wire() as on:
        asked = await on.ask(left=left)
        await on.answer(failed(1, error))
        with pytest.raises(raised) as caught:
            await asked
        if raised is WorkerLost:
            assert caught.value.metadata == {"worker": "t:1"}


async def test_an_answer_to_something_else_is_the_tokenizers_bug() -> None:
    async with wire() as on:
        chat = Ask(apply_chat_template=ApplyChatTemplateRequest())
        tasks = [asyncio.create_task(on.stream.ask(chat, None)) for _ in range(2)]
        await settle()
        await on.answer(tokenized(1), Answer(handle=2, applied=ApplyChatTemplateResponse(text="t")))
        with pytest.raises(Internal):
            await tasks[0]
        assert (await tasks[1]).applied.text == "t"


async def test_whoever_goes_withdraws_its_ask_and_nothing_more_is_heard_of_it() -> None:
    async with wire() as on:
        sent = await on.ask("sent")
        await settle()
        on.call.writable.clear()
        in_the_way = await on.ask("in the way")
        await settle()
        unsent = await on.ask("unsent")
        sent.cancel()
        unsent.cancel()
        await settle()
        on.call.writable.set()
        await on.answer(tokenized(1), tokenized(2))
        assert [text for message in on.sent for _, text in message] == ["sent", "in the way"]
        assert on.withdrawn == [1], "what was not sent needs no withdrawal"
        assert sent.cancelled()
        assert unsent.cancelled()
        assert (await in_the_way).HasField("tokenized")
        assert sorted(on.judged.told) == ["ended", "ended", "succeeded"]


async def test_whoever_goes_in_the_turn_of_its_answer_is_not_missed() -> None:
    async with wire() as on:
        asked = await on.ask()
        await settle()
        on.call.answer(EncodeResponse(answers=[failed(1, Internal("broken"))]))
        asked.cancel()
        await settle()
        assert asked.cancelled()
        assert on.stream.num_live == 0


async def test_an_ask_that_takes_too_long_has_lost_its_tokenizer_and_leaves_the_others() -> None:
    async with wire() as on:
        await on.clock.advance(7.0)
        slow = await on.ask("slow")
        await on.clock.advance(LIMIT - 1)
        young = await on.ask("young")
        await on.clock.advance(0.5)
        assert not slow.done()
        await on.clock.advance(0.5)
        await settle()
        with pytest.raises(WorkerLost, match="t:1 was lost: it did not answer in time"):
            await slow
        assert on.withdrawn == [1]
        assert on.judged.told == ["WorkerLost before_first_token"]
        await on.answer(tokenized(1), tokenized(2))
        assert (await young).HasField("tokenized")


async def test_the_end_of_the_stream_is_the_end_of_all_its_asks() -> None:
    async with wire() as on:
        asked = await on.ask()
        on.call.fail(grpc.StatusCode.UNAVAILABLE, "gone")
        with pytest.raises(WorkerLost):
            await on.run
        with pytest.raises(WorkerLost, match="tokenizer t:1 was lost") as caught:
            await asked
        assert caught.value.metadata == {"worker": "t:1"}
        with pytest.raises(WorkerLost):
            await on.stream.ask(_text("x"), None)
        assert on.judged.told == ["WorkerLost after_first_token"]


async def test_a_stream_that_ends_for_a_drain_is_nobodys_fault() -> None:
    async with wire() as on:
        asked = await on.ask()
        on.call.fail_with(Draining("it stops"))
        with pytest.raises(Draining):
            await asked
        assert on.judged.told == ["Draining drain"]
        await asyncio.gather(on.run, return_exceptions=True)


async def test_silence_is_counted_while_an_answer_is_owed() -> None:
    async with wire() as on:
        await on.clock.advance(100.0)
        assert on.stream.silent_seconds(on.clock.monotonic()) == 0.0
        first, second = await on.ask(), await on.ask()
        await on.clock.advance(5.0)
        assert on.stream.silent_seconds(on.clock.monotonic()) == 5.0
        await on.answer(tokenized(2))
        await on.clock.advance(3.0)
        assert on.stream.silent_seconds(on.clock.monotonic()) == 3.0
        first.cancel()
        await settle()
        assert on.stream.silent_seconds(on.clock.monotonic()) == 0.0
        await second


async def test_all_that_wait_are_given_up_and_who_comes_later_is_not() -> None:
    async with wire() as on:
        waiting = [await on.ask() for _ in range(3)]
        on.stream.give_up(12.0)
        for task in waiting:
            with pytest.raises(WorkerLost, match="tokenizer t:1 was lost: it has answered nothing for 12 s"):
                await task
        later = await on.ask()
        await on.answer(tokenized(4))
        assert (await later).HasField("tokenized")


async def test_what_fits_no_message_is_refused_before_it_ends_the_stream() -> None:
    async with wire() as on:
        with pytest.raises(InvalidArgument, match="prompt"):
            await on.stream.ask(_text("x" * MAX_MESSAGE_BYTES), None)
        assert on.stream.num_live == 0


def _text(text: str) -> Ask:
    return Ask(tokenize=TokenizeRequest(texts=[text]))
