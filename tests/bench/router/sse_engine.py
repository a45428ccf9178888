"""A mock engine for routers that speak HTTP: OpenAI's chat completions as server-sent events, as cheap as Python can.

python -m bench.router.sse_engine MODEL        prints its URL as JSON
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, cast

import uvloop

from bench.router import clock_token
from bench.router.pace import Drawing, DueTokens, read_pace

_HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = (
    '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"%s",'
    '"choices":[{"index":0,"delta":%s,"finish_reason":%s}]}'
)


class Engine:
    """All streams; `run` draws their tokens."""

    def __init__(self, model: str) -> None:
        self._due, self._something_new = DueTokens(), asyncio.Event()
        self._connections: dict[Drawing, Connection] = {}
        self._pace, self._next_step = read_pace(), 0.0
        self.model = model
        head, tail = (_EVENT % (model, '{"content":"|"}', "null")).split("|")
        self._head, self._tail = f"data: {head}".encode(), f"{tail}\n\n".encode()
        last = _EVENT % (model, "{}", '"length"')
        self._last = _chunk(f"data: {last}\n\ndata: [DONE]\n\n".encode()) + b"0\r\n\r\n"

    def begin(self, connection: Connection, tokens: int) -> None:
        self._pace = read_pace()
        drawing = Drawing(tokens, self._pace.period, time.monotonic() + self._pace.step_seconds)
        self._connections[drawing] = connection
        self._due.add(drawing)
        self._something_new.set()

    async def run(self) -> None:
        while True:
            left = self._due.seconds_left(time.monotonic())
            self._something_new.clear()
            try:
                async with asyncio.timeout(left):
                    await self._something_new.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(max(0.0, self._next_step - time.monotonic()))
            self._next_step = time.monotonic() + self._pace.step_seconds
            for drawing, count in self._due.take(time.monotonic()):
                self._draw(drawing, count)

    def _draw(self, drawing: Drawing, count: int) -> None:
        connection = self._connections[drawing]
        data = _chunk(self._head + clock_token.text(clock_token.now()).encode() + self._tail) * count
        if not drawing.left:
            data += self._last
        if not connection.send(data):
            drawing.left = 0
        if not drawing.left:
            del self._connections[drawing]


class Connection(asyncio.Protocol):
    def __init__(self, engine: Engine) -> None:
        self._engine, self._received = engine, b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None

    def send(self, data: bytes) -> bool:
        """Whether anybody is there."""
        if self._transport is not None:
            self._transport.write(data)
        return self._transport is not None

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._received[:end].lower()
        start, size = end + 4, _content_length(head)
        if len(self._received) < start + size:
            return
        body, self._received = self._received[start : start + size], self._received[start + size :]
        self._answer(head.split(b" ", 2)[1], body)

    def _answer(self, path: bytes, body: bytes) -> None:
        if path.endswith(b"/completions"):
            self.send(_HEADERS)
            self._engine.begin(self, int(json.loads(body).get("max_tokens", 16)))
            return
        told = json.dumps(_about(path.decode(), self._engine.model)).encode()
        self.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(told), told)
        )


def _about(path: str, model: str) -> dict[str, Any]:
    """What routers ask an SGLang server for before they use it."""
    if "models" in path:
        return {"object": "list", "data": [{"id": model, "object": "model", "owned_by": "sglang", "root": model}]}
    if "info" in path:
        return {"model_path": model, "served_model_name": model, "is_generation": True, "tp_size": 1, "dp_size": 1}
    return {"status": "ok", "load": 0, "loads": []}


def _content_length(head: bytes) -> int:
    at = head.find(b"content-length:")
    return int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _main(model: str) -> None:
    engine = Engine(model)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(engine), "127.0.0.1", 0, backlog=4096)
    told = {"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}
    print(json.dumps(told), flush=True)  # to whoever started it
    await engine.run()


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
