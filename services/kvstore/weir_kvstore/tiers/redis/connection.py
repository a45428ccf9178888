"""redis-py's connections, with a protocol of ours from their beginning.

redis-py reads a reply through asyncio's StreamReader and then its parser, which copy a long value five times. So what a
connection receives goes to that reader only while nothing else is under way; for a batch of `GET`s it is received
straight into the values (asyncio.BufferedProtocol). Address, TLS, password, database and pool are redis-py's. A
transport keeps its protocol for good: event loops are at their weakest where one is exchanged on a connection that just
then breaks.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeAlias

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as ConnectionLost

from weir_kvstore.tiers.redis.replies import Replies

# What arrives at once for redis-py's reader: its own commands' answers are short.
_READ_BYTES: Final = 64 * 1024

_Opened: TypeAlias = tuple[asyncio.BaseTransport, "Receiver"]
_Open: TypeAlias = Callable[[Callable[[], "Receiver"]], Coroutine[Any, Any, _Opened]]


def connect_directly(client: Redis) -> None:
    """Connections that this client makes from now on are ours."""
    pool = client.connection_pool
    pool.connection_class = _DIRECT[pool.connection_class]


class Receiver(asyncio.BufferedProtocol):
    """Where a connection's bytes go: into `replies` while there are any, else to a stream."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.reader = asyncio.StreamReader(loop=loop)
        self.stream = asyncio.StreamReaderProtocol(self.reader, loop=loop)
        self.replies: Replies | None = None
        self._scratch = memoryview(bytearray(_READ_BYTES))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.stream.connection_made(transport)

    def get_buffer(self, _: int) -> memoryview:
        return self._scratch if self.replies is None else self.replies.room

    def buffer_updated(self, nbytes: int) -> None:
        if self.replies is None:
            self.stream.data_received(bytes(self._scratch[:nbytes]))
        else:
            self.replies.arrived(nbytes)

    def eof_received(self) -> bool | None:
        self._fail("the server closed the connection")
        return self.stream.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(str(exc or "the connection was closed"))
        self.stream.connection_lost(exc)

    def pause_writing(self) -> None:
        self.stream.pause_writing()

    def resume_writing(self) -> None:
        self.stream.resume_writing()

    def _fail(self, why: str) -> None:
        if self.replies is not None:
            self.replies.fail(ConnectionLost(why))


class DirectConnection(AbstractConnection):
    """What ours have in common."""

    _receiver: Receiver

    @contextmanager
    def receiving(self, replies: Replies) -> Iterator[Callable[[bytes], None]]:
        """What to send with: answers are for `replies`. Raises ConnectionLost if the connection is lost already."""
        writer, receiver = self._writer, self._receiver
        if writer is None or writer.is_closing() or receiver.reader.at_eof():
            raise ConnectionLost("the connection was closed")
        assert receiver.replies is None, "one batch at a time"
        receiver.replies = replies
        try:
            yield writer.write
        finally:
            receiver.replies = None

    async def _open(self, opened: _Open) -> asyncio.BaseTransport:
        async with asyncio.timeout(self.socket_connect_timeout):
            transport, self._receiver = await opened(Receiver)
        reader, stream = self._receiver.reader, self._receiver.stream
        # redis-py 8.1 has no other way to tell it.
        self._reader = reader
        self._writer = asyncio.StreamWriter(transport, stream, reader, asyncio.get_running_loop())  # type: ignore[arg-type]
        return transport


class _DirectTcp(DirectConnection, Connection):
    async def _connect(self) -> None:
        opened = partial(asyncio.get_running_loop().create_connection, **self._connection_arguments())
        transport = await self._open(opened)
        if self.socket_keepalive:
            _keep_alive(transport.get_extra_info("socket"), self.socket_keepalive_options)


class _DirectTls(_DirectTcp, SSLConnection):
    """Its arguments say how."""


class _DirectUnix(DirectConnection, UnixDomainSocketConnection):
    async def _connect(self) -> None:
        await self._open(partial(asyncio.get_running_loop().create_unix_connection, path=self.path))


_DIRECT: Final[dict[type[AbstractConnection], type[AbstractConnection]]] = {
    Connection: _DirectTcp,
    SSLConnection: _DirectTls,
    UnixDomainSocketConnection: _DirectUnix,
}


def _keep_alive(connected: socket.socket, options: Any) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in options.items():
        connected.setsockopt(socket.IPPROTO_TCP, option, value)
