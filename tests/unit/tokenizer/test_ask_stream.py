"""What a stream of asks does besides answering: bounds, drains, gives everything back, is seen in logs and metrics."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from structlog.testing import capture_logs

from contract.encode_contract import Asker, asking, reason_of
from unit.tokenizer.conftest import until
from unit.tokenizer.model_directories import write_model
from weir.tokenizer.v1 import tokenizer_pb2 as pb
from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from weir_chassis.errors import reason_name
from weir_chassis.observed import Observer
from weir_chassis.server import Chassis, Servicers, new_chassis
from weir_chassis.testing import assert_no_leases, serve_in_memory, serve_on_loopback, settle
from weir_tokenizer import ask_stream
from weir_tokenizer.ask_stream import AskDesk, AskStream
from weir_tokenizer.encoder import Encoder
from weir_tokenizer.model import TextModel
from weir_tokenizer.service import build
from weir_tokenizer.servicer import TokenizerServicer
from weir_tokenizer.settings import TokenizerSettings

if TYPE_CHECKING:
    from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub as Stub

PLACES = {"loopback": serve_on_loopback, "memory": serve_in_memory}
TOKENIZE = "/weir.tokenizer.v1.TokenizerService/Tokenize"


@dataclass
class Served:
    asker: Asker
    stub: Stub
    chassis: Chassis
    drain: Callable[[], Any]

    def waiting(self, *handles: int, **fields: Any) -> list[pb.Ask]:
        return [pb.Ask(handle=handle, tokenize=pb.TokenizeRequest(texts=["x"]), **fields) for handle in handles]


@asynccontextmanager
async def serve(directory: Path, place: str = "memory", **settings: Any) -> AsyncIterator[Served]:
    chassis = new_chassis("tokenizer")
    checked = TokenizerSettings.model_validate({"models": {"m": write_model(directory)}, **settings})
    async with build(checked, chassis) as servicers, PLACES[place](*servicers.registrations) as channel:
        stub = TokenizerServiceStub(channel)
        async with asking(stub) as asker:
            yield Served(asker, stub, chassis, _drain_of(servicers))
        await until(lambda: not chassis.leases.counts().get("ask"))
        (servicer,) = (registration.servicer for registration in servicers.registrations)
        assert isinstance(servicer, TokenizerServicer)
        await until(lambda: not servicer._streams)
    assert_no_leases(chassis.leases)


def _drain_of(servicers: Servicers) -> Callable[[], Any]:
    assert servicers.drain is not None
    return servicers.drain


class Gate:
    """Encoding waits in its thread until it is let go; `begun` counts what has got that far."""

    def __init__(self) -> None:
        self.begun = 0
        self._open = threading.Event()
        self._encode = TextModel.encode

    def encode(self, model: TextModel, *args: Any, **options: Any) -> Any:
        self.begun += 1
        assert self._open.wait(30)
        return self._encode(model, *args, **options)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()

    def encode(model: TextModel, *args: Any, **options: Any) -> Any:
        return gate.encode(model, *args, **options)  # a method of the model, which the gate's own would not be

    monkeypatch.setattr(TextModel, "encode", encode)
    return gate


@pytest.mark.parametrize("place", PLACES)
async def test_a_drain_answers_what_is_open_refuses_what_is_new_and_ends_the_stream(
    place: str, tmp_path: Path, gate: Gate
) -> None:
    async with serve(tmp_path, place) as on:
        begun = on.asker.expect(1)
        await on.asker.send(asks=on.waiting(1))
        await until(lambda: gate.begun == 1)
        await on.drain()
        assert await on.asker.reason(handle=2, tokenize=pb.TokenizeRequest(texts=["x"])) == "DRAINING"
        gate.open()
        assert (await begun).HasField("tokenized")
        ended = await on.asker.ended
        assert ended is not None
        assert reason_name(ended.reason) == "DRAINING"


@pytest.mark.parametrize("place", PLACES)
async def test_a_drain_ends_an_idle_stream(place: str, tmp_path: Path) -> None:
    async with serve(tmp_path, place) as on:
        await on.asker.ask(tokenize=pb.TokenizeRequest(texts=["x"]))
        await on.drain()
        ended = await on.asker.ended
        assert ended is not None
        assert reason_name(ended.reason) == "DRAINING"


async def test_a_drain_does_not_wait_for_what_has_been_withdrawn(tmp_path: Path, gate: Gate) -> None:
    async with serve(tmp_path) as on:
        await on.asker.send(asks=on.waiting(1))
        await until(lambda: gate.begun == 1)
        await on.drain()
        assert await on.asker.reason(handle=2, tokenize=pb.TokenizeRequest(texts=["x"])) == "DRAINING"  # it waits now
        await on.asker.send(withdrawn_handles=[1])
        async with asyncio.timeout(30):
            ended = await on.asker.ended
        gate.open()
        assert ended is not None
        assert reason_name(ended.reason) == "DRAINING"


async def test_one_ask_too_many_is_refused_and_not_the_stream(tmp_path: Path, gate: Gate) -> None:
    async with serve(tmp_path, max_open_asks=2) as on:
        first, second, third = (on.asker.expect(handle) for handle in (1, 2, 3))
        await on.asker.send(asks=on.waiting(1, 2, 3))
        assert reason_of(await third) == "OVERLOADED"
        gate.open()
        assert [(await answer).HasField("tokenized") for answer in (first, second)] == [True, True]


async def test_too_much_work_is_refused_as_a_call_of_its_own_would_be(tmp_path: Path, gate: Gate) -> None:
    async with serve(tmp_path, max_pending=2, threads=1) as on:
        first, second, third = (on.asker.expect(handle) for handle in (1, 2, 3))
        await on.asker.send(asks=on.waiting(1, 2, 3))
        assert reason_of(await third) == "OVERLOADED"
        assert "RetryInfo" in str((await third).failure)
        gate.open()
        await asyncio.gather(first, second)


async def test_what_is_withdrawn_before_it_has_begun_never_begins(tmp_path: Path, gate: Gate) -> None:
    async with serve(tmp_path, threads=1) as on:
        begun = on.asker.expect(1)
        await on.asker.send(asks=on.waiting(1, 2, 3))
        await until(lambda: gate.begun == 1)
        assert on.chassis.leases.counts() == {"ask": 3, "encode": 3}
        await on.asker.send(withdrawn_handles=[2, 3])
        await until(lambda: on.chassis.leases.counts() == {"ask": 1, "encode": 1})
        gate.open()
        await begun
        assert (gate.begun, on.asker.answered()) == (1, [1])
        given_up = {"method": TOKENIZE, "code": "CANCELLED", "reason": "CANCELLED"}
        assert on.chassis.metrics.registry.get_sample_value("weir_tokenizer_calls_total", given_up) == 2


async def test_what_is_withdrawn_while_it_runs_keeps_its_thread_and_is_not_answered(tmp_path: Path, gate: Gate) -> None:
    async with serve(tmp_path, threads=1) as on:
        await on.asker.send(asks=on.waiting(1))
        await until(lambda: gate.begun == 1)
        await on.asker.send(withdrawn_handles=[1])
        await until(lambda: on.chassis.leases.counts() == {"encode": 1})
        again = on.asker.expect(1)
        await on.asker.send(asks=on.waiting(1))
        gate.open()
        assert (await again).HasField("tokenized")
        assert on.asker.answered() == [1]


async def test_a_time_that_passes_while_the_threads_are_busy_ends_the_ask(tmp_path: Path, gate: Gate) -> None:
    async with serve(tmp_path, threads=1) as on:
        first = on.asker.expect(1)
        await on.asker.send(asks=on.waiting(1))
        await until(lambda: gate.begun == 1)
        late = on.asker.expect(2)
        await on.asker.send(asks=on.waiting(2, time_left=Duration(nanos=50_000_000)))
        assert reason_of(await late) == "DEADLINE_EXCEEDED"
        gate.open()
        await first
        assert gate.begun == 1


async def test_an_ask_without_a_time_has_the_services_own(tmp_path: Path, gate: Gate) -> None:
    async with serve(tmp_path, default_deadline_seconds=0.05) as on:
        assert await on.asker.reason(tokenize=pb.TokenizeRequest(texts=["x"])) == "DEADLINE_EXCEEDED"
        gate.open()


async def test_a_caller_that_goes_leaves_nothing(tmp_path: Path, gate: Gate) -> None:
    async with serve(tmp_path, threads=1) as on:
        await on.asker.send(asks=on.waiting(*range(5)))
        await until(lambda: gate.begun == 1)
        on.asker.call.cancel()
        await until(lambda: on.chassis.leases.counts() == {"encode": 1})
        gate.open()


async def test_a_caller_that_does_not_read_is_a_slow_consumer(tmp_path: Path) -> None:
    async with serve(tmp_path, slow_consumer_seconds=0.05) as on:
        deaf = on.stub.Encode()
        async with asyncio.timeout(30):
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # whichever way the end is met
                while True:
                    await deaf.write(pb.EncodeRequest(asks=[pb.Ask(handle=1)]))
                    await asyncio.sleep(0.001)  # so that each answer is a message
        assert await deaf.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "was not read for 0.05 s" in await deaf.details()


async def test_answers_are_joined_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    async with serve(tmp_path, threads=1) as on:
        answers = [on.asker.expect(handle) for handle in range(8)]
        size = (await _answered_alone(on, gate)).ByteSize()
        monkeypatch.setattr(ask_stream, "_MAX_JOINED_BYTES", 2 * max(size, 256))
        await on.asker.send(asks=on.waiting(*range(8)))
        await asyncio.gather(*answers)
        assert max(len(message.answers) for message in on.asker.messages) <= 2


async def _answered_alone(on: Served, gate: Gate) -> pb.Answer:
    gate.open()
    return await on.asker.ask(handle=100, tokenize=pb.TokenizeRequest(texts=["x"]))


class Quick:
    """An encoder that has nothing to wait for."""

    async def tokenize(self, request: pb.TokenizeRequest, _: float | None) -> pb.TokenizeResponse:
        return pb.TokenizeResponse(prompts=[pb.TokenizedPrompt(token_ids=[len(request.texts[0])])])


def new_stream(chassis: Chassis) -> AskStream:
    observer = Observer(chassis.metrics, chassis.clock)
    return AskStream(AskDesk(cast("Encoder", Quick()), observer, chassis.leases, chassis.random, max_open=8))


def asking_for(handle: int, text: str) -> pb.EncodeRequest:
    return pb.EncodeRequest(asks=[pb.Ask(handle=handle, tokenize=pb.TokenizeRequest(texts=[text]))])


async def test_what_is_withdrawn_when_it_is_answered_and_not_written_is_not_written() -> None:
    chassis = new_chassis("tokenizer")
    stream = new_stream(chassis)
    for request in (asking_for(1, "gone"), asking_for(2, "x"), pb.EncodeRequest(withdrawn_handles=[1])):
        stream.take(request)
        await settle()
    stream.take(asking_for(1, "again"))
    await settle()
    message = await stream.next_message()
    assert message is not None
    assert [(each.handle, each.tokenized.prompts[0].token_ids[0]) for each in message.answers] == [(2, 1), (1, 5)]
    assert_no_leases(chassis.leases)


class Talker:
    """A caller that asks nothing, two times in each message, for as long as it is read from."""

    reads = 0

    async def read(self) -> pb.EncodeRequest:
        await asyncio.sleep(0)
        self.reads += 1
        return pb.EncodeRequest(asks=[pb.Ask(handle=1), pb.Ask(handle=2)])


async def test_no_more_is_read_while_much_waits_to_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_stream, "_MAX_UNWRITTEN_BYTES", 1024)
    chassis, talker = new_chassis("tokenizer"), Talker()
    stream = new_stream(chassis)
    reader = asyncio.create_task(stream.read(talker))
    for _ in range(3):
        talker.reads = 0
        await settle()
        assert 1 <= talker.reads <= 3, "a refusal counts a quarter of the limit at least"
        refused = await stream.next_message()
        assert refused is not None
        assert len(refused.answers) == 2 * talker.reads
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)


async def test_an_ask_is_counted_timed_and_logged_as_a_call_of_its_rpc(tmp_path: Path) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with serve(tmp_path) as on:
        with capture_logs() as logs:
            bad = pb.TokenizeRequest(texts=["x", ""])
            names = {"request_id": "r-7", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
            assert await on.asker.reason(tokenize=bad, **names) == "INVALID_ARGUMENT"
        await on.asker.ask(tokenize=pb.TokenizeRequest(texts=["x"]))
        (line,) = [line for line in logs if line["event"] == "call_refused"]
        assert (line["method"], line["reason"], line["fields"]) == (TOKENIZE, "INVALID_ARGUMENT", ["texts[1]"])
        sample = on.chassis.metrics.registry.get_sample_value
        refused = {"method": TOKENIZE, "code": "INVALID_ARGUMENT", "reason": "INVALID_ARGUMENT"}
        assert sample("weir_tokenizer_calls_total", refused) == 1
        assert sample("weir_tokenizer_calls_total", {"method": TOKENIZE, "code": "OK", "reason": ""}) == 1
        assert sample("weir_tokenizer_call_seconds_count", {"method": TOKENIZE}) == 2
        assert sample("weir_tokenizer_calls_in_flight", {"method": TOKENIZE}) == 0


async def test_a_bug_is_internal_for_its_own_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(tmp_path) as on:
        with monkeypatch.context() as broken:
            broken.setattr(TextModel, "encode", lambda *_, **__: 1 / 0)
            assert await on.asker.reason(tokenize=pb.TokenizeRequest(texts=["x"])) == "INTERNAL"
        assert (await on.asker.ask(tokenize=pb.TokenizeRequest(texts=["x"]))).HasField("tokenized")


async def test_an_answer_that_fits_no_message_is_refused_at_both_doors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weir_tokenizer.encoder._MAX_ANSWER_BYTES", 500)
    request = pb.TokenizeRequest(texts=["a b c d " * 20], hash_scope=pb.HashScope(block_size=1))
    async with serve(tmp_path) as on:
        assert await on.asker.reason(tokenize=request) == "INVALID_ARGUMENT"
        with pytest.raises(Exception, match="its ids and hashes take"):
            await on.stub.Tokenize(request)
        assert (await on.asker.ask(tokenize=pb.TokenizeRequest(texts=["a"]))).HasField("tokenized")
