"""The doors of the contenders: Weir's own, an executor's own (the floor), and OpenAI's over HTTP."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

import grpc

from bench.router import clock_token
from bench.router.chunks import Chunks
from bench.router.load import Heard
from weir.executor.v1 import executor_pb2
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt, ContentPart
from weir.inference.v1.output_pb2 import TokenBatch
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1.router_pb2 import ChatRequest
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import open_channel

_Steps = grpc.aio.StreamStreamCall[executor_pb2.GenerateRequest, executor_pb2.GenerateResponse]
_CONNECTIONS = 4  # of all gRPC clients together
_TEXT = "A weir is a low dam that measures and regulates a flow. " * 18  # a thousand characters


class WeirDoor:
    def __init__(self, channels: list[grpc.aio.Channel]) -> None:
        self._stubs = itertools.cycle([RouterServiceStub(channel) for channel in channels])
        self._turns = itertools.count()

    async def answer(self, tokens: int, heard: Heard) -> float:
        message = ChatMessage(role="user", content=[ContentPart(text=f"Request {next(self._turns)}. {_TEXT}")])
        request = ChatRequest(
            prompt=ChatPrompt(messages=[message]),
            sampling=SamplingParameters(temperature=0),
            stopping=StoppingConditions(max_tokens=tokens, ignore_eos=True),
            batch_events=True,
        )
        began, first, count = time.monotonic(), 0.0, 0
        async for response in next(self._stubs).Chat(request):
            for event in (response, *response.more):
                if event.HasField("delta"):
                    first = first or time.monotonic()
                    count += len(event.delta.token_ids)
                    heard.on_tokens(event.delta.token_ids)
        assert count == tokens, (count, tokens)
        return first - began


@asynccontextmanager
async def weir_door(address: str) -> AsyncIterator[WeirDoor]:
    channels = [open_channel(address) for _ in range(_CONNECTIONS)]
    try:
        yield WeirDoor(channels)
    finally:
        for channel in channels:
            await channel.close()


class ExecutorDoor:
    """Straight to the executor, with a prompt that is tokens already: what no router can be faster than."""

    def __init__(self) -> None:
        self._handles = itertools.count(1)
        self._answers: dict[int, asyncio.Queue[int]] = {}
        self._outgoing: asyncio.Queue[executor_pb2.GenerateRequest] = asyncio.Queue()

    async def run(self, call: _Steps) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write(call))
            while (step := await call.read()) is not grpc.aio.EOF:
                assert isinstance(step, executor_pb2.GenerateResponse)
                for handle, token_id in rows(step.tokens):
                    if (answer := self._answers.get(handle)) is not None:
                        answer.put_nowait(token_id)

    async def _write(self, call: _Steps) -> None:
        # One task writes: a write that is cancelled ends the call.
        while True:
            await call.write(await self._outgoing.get())

    async def answer(self, tokens: int, heard: Heard) -> float:
        began, first = time.monotonic(), 0.0
        async with aclosing(self.draw(tokens)) as drawn:  # type: ignore[type-var]
            async for token_id in drawn:
                first = first or time.monotonic()
                heard.on_tokens([token_id])
        return first - began

    async def draw(self, tokens: int) -> AsyncIterator[int]:
        """So many tokens, each as it comes."""
        handle = next(self._handles)
        answer = self._answers[handle] = asyncio.Queue()
        submit = executor_pb2.Submit(
            handle=handle, token_ids=range(256), stopping=StoppingConditions(max_tokens=tokens, ignore_eos=True)
        )
        self._outgoing.put_nowait(executor_pb2.GenerateRequest(submit=submit))
        try:
            for _ in range(tokens):
                yield await answer.get()
        finally:
            del self._answers[handle]
            # One that has ended is aborted without harm.
            self._outgoing.put_nowait(executor_pb2.GenerateRequest(abort=executor_pb2.Abort(handle=handle)))


def rows(batch: TokenBatch) -> Iterator[tuple[int, int]]:
    """Each token and whose it is."""
    handles = (handle for handle, count in zip(batch.handles, batch.token_counts, strict=True) for _ in range(count))
    return zip(handles, batch.token_ids, strict=True)


@asynccontextmanager
async def executor_door(address: str) -> AsyncIterator[ExecutorDoor]:
    async with open_channel(address) as channel:
        door = ExecutorDoor()
        running = asyncio.create_task(door.run(ExecutorServiceStub(channel).Generate()))
        try:
            yield door
        finally:
            running.cancel()
            await asyncio.wait({running})
            if not running.cancelled():
                running.result()  # it has failed, and so has all that waited for it


class HttpDoor:
    """As many connections as there are requests at once, kept open."""

    def __init__(self, url: str, model: str) -> None:
        self._host, self._port = urlsplit(url).hostname or "", urlsplit(url).port or 80
        self._model, self._turns = model, itertools.count()
        self._idle: list[_HttpConnection] = []

    async def answer(self, tokens: int, heard: Heard) -> float:
        body = json.dumps(
            {
                "model": self._model,
                "messages": [{"role": "user", "content": f"Request {next(self._turns)}. {_TEXT}"}],
                "stream": True,
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
        ).encode()
        connection = self._idle.pop() if self._idle else await self._connect()
        began = time.monotonic()
        first, count = await connection.post(body, heard)
        assert count == tokens, (count, tokens)
        self._idle.append(connection)
        return first - began

    async def _connect(self) -> _HttpConnection:
        _, protocol = await asyncio.get_running_loop().create_connection(_HttpConnection, self._host, self._port)
        return protocol

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


class _HttpConnection(asyncio.Protocol):
    """One request at a time. The end of an answer is its last chunk."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done = asyncio.get_running_loop().create_future()
        self._begin(Heard())

    def _begin(self, heard: Heard) -> None:
        self._heard, self._chunks = heard, Chunks()
        self._rest, self._first, self._count = b"", 0.0, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(error or ConnectionResetError("the router closed the connection"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def post(self, body: bytes, heard: Heard) -> tuple[float, int]:
        """When the first token came, and how many did."""
        assert self._transport is not None
        self._begin(heard)
        self._done = asyncio.get_running_loop().create_future()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n"
        self._transport.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        try:
            await self._done
        except asyncio.CancelledError:
            self.close()
            raise
        return self._first, self._count

    def data_received(self, data: bytes) -> None:
        self._acknowledge()
        token_ids, self._rest = complete_tokens(self._rest + self._chunks.feed(data))
        if token_ids:
            self._first = self._first or time.monotonic()
            self._count += len(token_ids)
            self._heard.on_tokens(token_ids)
        if self._chunks.done and not self._done.done():
            self._done.set_result(None)

    def _acknowledge(self) -> None:
        """At once, or a router that waits for it before it sends more (Nagle) would be 40 ms late. Linux forgets."""
        assert self._transport is not None
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def complete_tokens(data: bytes) -> tuple[list[int], bytes]:
    """The tokens of the data, and the end of it, which may be the beginning of one."""
    end = data.rfind(b"\n") + 1
    return list(clock_token.found(data[:end])), data[end:]


@asynccontextmanager
async def http_door(url: str, model: str) -> AsyncIterator[HttpDoor]:
    door = HttpDoor(url, model)
    try:
        yield door
    finally:
        door.close()
