"""`GET`s sent together, and each value received into memory of its own.

redis-py reads a reply through asyncio's StreamReader and then its parser, which copy a long value five times. So the
connection is redis-py's (address, TLS, password, database, pool), and while a batch is under way its transport writes
straight into the values (asyncio.BufferedProtocol). Replies are RESP2:
https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import InvalidResponse, ResponseError

# What a key held: its bytes, nothing, or why the server does not say.
Reply: TypeAlias = memoryview | ResponseError | None

# Where replies' first lines arrive, and with each as much of its value, which is then copied: small beside a large one.
_SCRATCH_BYTES: Final = 16 * 1024
# `$67108864`, or an error's text. No server says more in a line.
_MAX_LINE_BYTES: Final = 4096
_END: Final = b"\r\n"


async def fetch(pool: ConnectionPool, keys: Sequence[str], *, max_value_bytes: int) -> list[Reply]:
    """One reply for each key, in order; of a value that is longer than any of ours, none of its bytes.

    Raises RedisError, OSError. A connection on which replies are still to come is not used again.
    """
    connection: AbstractConnection = await pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        replies = Replies(len(keys), max_value_bytes)
        with _receiving(connection, replies) as transport:
            transport.write(b"".join(connection.pack_commands([("GET", key) for key in keys])))
            return await replies.whole
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)


@contextmanager
def _receiving(connection: AbstractConnection, replies: Replies) -> Iterator[asyncio.Transport]:
    """What the connection receives goes there, and not to redis-py's reader."""
    writer = connection._writer  # redis-py 8.1 has no other way to it
    if writer is None:
        raise ConnectionLost("the connection was closed")
    transport: asyncio.Transport = writer.transport  # type: ignore[assignment]  # of a stream it is one
    usual = transport.get_protocol()
    _hand_over(transport, replies)
    try:
        yield transport
    finally:
        _hand_over(transport, usual)


def _hand_over(transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
    """Event loops look when reading begins at how a protocol wants its bytes."""
    transport.pause_reading()
    transport.set_protocol(protocol)
    transport.resume_reading()


class Replies(asyncio.BufferedProtocol):
    """Of so many `GET`s; `whole` once the last is there, ConnectionLost or InvalidResponse when it cannot come."""

    def __init__(self, count: int, max_value_bytes: int) -> None:
        assert count > 0, count
        self.whole: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self._count = count
        self._max_value_bytes = max_value_bytes
        self._replies: list[Reply] = []
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._line = b""  # the beginning of one
        self._value: memoryview | None = None  # that is being received, and its line's end
        self._filled = 0
        self._skipped = 0  # bytes of a value that is too long, still to come

    def get_buffer(self, _: int) -> memoryview:
        return self._scratch if self._value is None else self._value[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._value is None:
            self._take(self._scratch[:nbytes])
        else:
            self._filled += nbytes
            self._end_value()
        if len(self._replies) == self._count and not self._skipped and not self.whole.done():
            self.whole.set_result(self._replies)

    def eof_received(self) -> None:
        self._fail(ConnectionLost("the server closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionLost(str(exc or "the connection was closed")))

    def _take(self, received: memoryview) -> None:
        """Lines, values, and beginnings of either."""
        while received and not self.whole.done():
            if self._skipped:
                taken = min(self._skipped, len(received))
                self._skipped -= taken
            elif self._value is None:
                taken = self._take_line(received)
            else:
                taken = min(len(self._value) - self._filled, len(received))
                self._value[self._filled : self._filled + taken] = received[:taken]
                self._filled += taken
                self._end_value()
            received = received[taken:]

    def _take_line(self, received: memoryview) -> int:
        """How much of it is the line's, or the beginning of one's."""
        begun = len(self._line)
        self._line += bytes(received[:_MAX_LINE_BYTES])
        end = self._line.find(_END)
        if end < 0:
            if len(self._line) > _MAX_LINE_BYTES:
                self._fail(InvalidResponse("a line without an end"))
            return len(self._line) - begun
        line, self._line = self._line[:end], b""
        self._begin(line)
        return end + len(_END) - begun

    def _begin(self, line: bytes) -> None:
        kind, said = line[:1], line[1:]
        if len(self._replies) == self._count:
            self._fail(InvalidResponse("more answers than questions"))
        elif kind == b"-":
            self._replies.append(ResponseError(said.decode(errors="replace")))
        elif line == b"$-1":
            self._replies.append(None)
        elif kind != b"$" or not said.isdigit():
            self._fail(InvalidResponse(f"no answer to a GET: {line[:64]!r}"))
        elif int(said) > self._max_value_bytes:
            self._skipped = int(said) + len(_END)
            self._replies.append(memoryview(b""))
        else:
            self._value, self._filled = memoryview(bytearray(int(said) + len(_END))), 0

    def _end_value(self) -> None:
        if self._value is None or self._filled < len(self._value):
            return
        value, self._value = self._value, None
        if bytes(value[-len(_END) :]) == _END:
            self._replies.append(value[: -len(_END)])
        else:
            self._fail(InvalidResponse("a value is longer than it says"))

    def _fail(self, error: Exception) -> None:
        if not self.whole.done():
            self.whole.set_exception(error)
