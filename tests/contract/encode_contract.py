"""What `Encode` keeps besides what its two RPCs keep. `door` makes a stub of a stream: their checks take it, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
from google.protobuf.duration_pb2 import Duration

from contract.tokenizer_contract import SERVED, TEXTS
from weir.inference.v1 import chat_pb2
from weir.tokenizer.v1 import tokenizer_pb2 as pb
from weir_chassis.errors import WeirError, reason_name
from weir_chassis.limits import MAX_JOINED
from weir_chassis.status import from_failure, from_rpc_error, to_rpc_status

if TYPE_CHECKING:
    from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub as Stub

Check = Callable[["Asker", "Stub"], Awaitable[None]]


class Asker:
    """One stream. `messages` are those that came; what nobody waits for is in them alone."""

    def __init__(self, stub: Stub) -> None:
        self.call = stub.Encode()
        self.messages: list[pb.EncodeResponse] = []
        self.ended: asyncio.Future[WeirError | None] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[pb.Answer]] = {}
        self._handles = count(1)
        self._writing = asyncio.Lock()
        self.reader = asyncio.create_task(self._read())

    async def send(self, **fields: Any) -> None:
        """Not cancelled with whoever sends: that would be the call's end."""
        await asyncio.shield(asyncio.create_task(self._write(pb.EncodeRequest(**fields))))

    def expect(self, handle: int) -> asyncio.Future[pb.Answer]:
        self._waiting[handle] = asyncio.get_running_loop().create_future()
        return self._waiting[handle]

    async def ask(self, *, handle: int | None = None, **fields: Any) -> pb.Answer:
        handle = next(self._handles) if handle is None else handle
        answer = self.expect(handle)
        try:
            await self.send(asks=[pb.Ask(handle=handle, **fields)])
            return await answer
        except asyncio.CancelledError:
            await self.send(withdrawn_handles=[handle])
            raise

    async def reason(self, **fields: Any) -> str:
        """Why an ask fails."""
        return reason_of(await self.ask(**fields))

    def answered(self) -> list[int]:
        return [answer.handle for message in self.messages for answer in message.answers]

    async def _write(self, message: pb.EncodeRequest) -> None:
        async with self._writing:
            await self.call.write(message)

    async def _read(self) -> None:
        try:
            while (message := await self.call.read()) is not grpc.aio.EOF:
                self._hear(cast("pb.EncodeResponse", message))
            self.ended.set_result(None)
        except grpc.RpcError as error:
            self.ended.set_result(from_rpc_error(error))

    def _hear(self, message: pb.EncodeResponse) -> None:
        self.messages.append(message)
        for answer in message.answers:
            future = self._waiting.pop(answer.handle, None)
            if future is not None and not future.done():
                future.set_result(answer)


def reason_of(answer: pb.Answer) -> str:
    assert answer.HasField("failure"), "it was answered"
    return reason_name(from_failure(answer.failure).reason)


def text(*texts: str, **fields: Any) -> pb.TokenizeRequest:
    return pb.TokenizeRequest(model=SERVED.chat, texts=texts, **fields)


@asynccontextmanager
async def asking(stub: Stub) -> AsyncIterator[Asker]:
    asker = Asker(stub)
    try:
        yield asker
    finally:
        asker.call.cancel()
        asker.reader.cancel()
        await asyncio.gather(asker.reader, return_exceptions=True)


class Door:
    """`Tokenize` and `ApplyChatTemplate` by one stream, and all else as it is."""

    def __init__(self, stub: Stub, asker: Asker) -> None:
        self._asker = asker
        self.Detokenize, self.GetTokenizerInfo, self.Encode = stub.Detokenize, stub.GetTokenizerInfo, stub.Encode

    async def Tokenize(self, request: pb.TokenizeRequest, timeout: float | None = None) -> pb.TokenizeResponse:
        return (await self._ask(timeout, tokenize=request)).tokenized

    async def ApplyChatTemplate(
        self, request: pb.ApplyChatTemplateRequest, timeout: float | None = None
    ) -> pb.ApplyChatTemplateResponse:
        return (await self._ask(timeout, apply_chat_template=request)).applied

    async def _ask(self, timeout: float | None, **fields: Any) -> pb.Answer:
        answer = await self._asker.ask(time_left=None if timeout is None else _duration(timeout), **fields)
        if not answer.HasField("failure"):
            return answer
        status = to_rpc_status(from_failure(answer.failure))
        trailing = grpc.aio.Metadata(*status.trailing_metadata)
        raise grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailing, status.details)


@asynccontextmanager
async def door(stub: Stub) -> AsyncIterator[Stub]:
    async with asking(stub) as asker:
        yield cast("Stub", Door(stub, asker))


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


# --- checks --------------------------------------------------------------------------------------------------------


async def check_it_is_said_that_there_is_one(_: Asker, stub: Stub) -> None:
    assert (await stub.GetTokenizerInfo(pb.GetTokenizerInfoRequest())).has_encode


async def check_asks_of_one_message_are_answered_each_by_its_handle(asker: Asker, stub: Stub) -> None:
    expected = [await stub.Tokenize(text(one)) for one in TEXTS]
    waiting = [asker.expect(handle) for handle in range(10, 10 + len(TEXTS))]
    prompt = chat_pb2.ChatPrompt(
        messages=[chat_pb2.ChatMessage(role="user", content=[chat_pb2.ContentPart(text="weir")])]
    )
    chat = pb.ApplyChatTemplateRequest(model=SERVED.chat, prompt=prompt)
    chatting = asker.expect(9)
    asks = [pb.Ask(handle=10 + index, tokenize=text(one)) for index, one in enumerate(TEXTS)]
    await asker.send(asks=[*asks, pb.Ask(handle=9, apply_chat_template=chat)])
    assert [(await answer).tokenized for answer in waiting] == expected
    assert (await chatting).applied == await stub.ApplyChatTemplate(chat)
    assert sorted(asker.answered()) == list(range(9, 10 + len(TEXTS)))


async def check_an_ask_that_fails_leaves_its_neighbours_as_they_are(asker: Asker, stub: Stub) -> None:
    good, bad, lost = asker.expect(1), asker.expect(2), asker.expect(3)
    elsewhere = pb.TokenizeRequest(model="nobody", texts=["x"])
    asks = [pb.Ask(handle=2, tokenize=text()), pb.Ask(handle=3, tokenize=elsewhere)]
    await asker.send(asks=[*asks, pb.Ask(handle=1, tokenize=text("x"))])
    assert (reason_of(await bad), reason_of(await lost)) == ("INVALID_ARGUMENT", "MODEL_NOT_FOUND")
    assert (await good).tokenized == await stub.Tokenize(text("x"))
    assert (await asker.ask(handle=2, tokenize=text("x"))).tokenized == (await good).tokenized


async def check_an_ask_that_asks_nothing_is_refused(asker: Asker, _: Stub) -> None:
    assert await asker.reason() == "INVALID_ARGUMENT"


async def check_more_than_a_message_may_hold_ends_the_stream(asker: Asker, stub: Stub) -> None:
    for field, few, many in (
        ("withdrawn_handles", [1] * MAX_JOINED, [1] * (MAX_JOINED + 1)),
        ("asks", [pb.Ask(handle=1)], [pb.Ask(handle=1)] * (MAX_JOINED + 1)),
    ):
        async with asking(stub) as one:
            await one.send(**{field: few})
            await one.ask(handle=2, tokenize=text("x"))
            await one.send(**{field: many})
            ended = await one.ended
            assert ended is not None
            assert reason_name(ended.reason) == "INVALID_ARGUMENT"
            assert all(said in ended.message for said in (field, "4097", "4096"))


async def check_a_handle_is_open_once_and_free_when_it_is_answered(asker: Asker, _: Stub) -> None:
    await asker.send(asks=[pb.Ask(handle=7, tokenize=text("x")), pb.Ask(handle=7, tokenize=text("y"))])
    async with asyncio.timeout(30):
        while len(asker.answered()) < 2:
            await asyncio.sleep(0.001)
    answers = [answer for message in asker.messages for answer in message.answers]
    assert [reason_of(answer) for answer in answers if answer.HasField("failure")] == ["ALREADY_EXISTS"]
    assert (await asker.ask(handle=7, tokenize=text("y"))).HasField("tokenized")


async def check_a_time_that_has_passed(asker: Asker, _: Stub) -> None:
    assert await asker.reason(tokenize=text("x"), time_left=Duration()) == "DEADLINE_EXCEEDED"
    assert (await asker.ask(tokenize=text("x"), time_left=Duration(seconds=60))).HasField("tokenized")


async def check_withdrawing_what_is_not_open_is_no_error(asker: Asker, _: Stub) -> None:
    await asker.send(withdrawn_handles=[1, 2, 3])
    assert (await asker.ask(handle=2, tokenize=text("x"))).HasField("tokenized")


async def check_a_stream_that_asks_no_more_ends_when_all_is_answered(asker: Asker, _: Stub) -> None:
    await asker.send(asks=[pb.Ask(handle=handle, tokenize=text("x")) for handle in range(5)])
    await asker.call.done_writing()
    assert await asker.ended is None
    assert sorted(asker.answered()) == [0, 1, 2, 3, 4]


async def check_many_asks_of_whom_some_are_withdrawn(asker: Asker, stub: Stub) -> None:
    expected = {one: (await stub.Tokenize(text(one))).prompts for one in TEXTS}

    async def come_and_go(random: Random) -> None:
        one = random.choice(TEXTS)
        asked = asyncio.ensure_future(asker.ask(tokenize=text(one)))
        if random.random() < 0.3:
            await asyncio.sleep(random.random() * 0.005)
            asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled() or asked.result().tokenized.prompts == expected[one]

    await asyncio.gather(*(come_and_go(Random(seed)) for seed in range(60)))
    assert len(asker.answered()) == len(set(asker.answered()))


CHECKS: Final[Sequence[Check]] = [value for name, value in sorted(globals().items()) if name.startswith("check_")]
