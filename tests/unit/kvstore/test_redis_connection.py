"""A connection that is redis-py's, whose bytes go into replies while there are any: over TCP, TLS and a unix socket."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as ConnectionLost

from servers import RedisServer, redis_server
from unit.kvstore.redis_fetching import VALUES, client_of, fetch_and_use, get
from weir_kvstore.tiers.redis.connection import Receiver
from weir_kvstore.tiers.redis.replies import Replies

TLS = Path(__file__).parents[1] / "chassis" / "tls"


@asynccontextmanager
async def passed_on(server: RedisServer, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a listener that passes on what it hears to the server, and back."""
    under_way: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while said := await source.read(1 << 16):
            sink.write(said)
            await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way.add(task)
        plain_reader, plain_writer = await asyncio.open_unix_connection(str(server.socket_path))
        await asyncio.gather(pump(reader, plain_writer), pump(plain_reader, writer), return_exceptions=True)
        for each in (plain_writer, writer):
            each.close()
            await asyncio.wait([asyncio.ensure_future(each.wait_closed())])

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listener:
        yield listener.sockets[0].getsockname()[1]
        if under_way:
            await asyncio.wait(under_way)


async def test_over_a_unix_socket() -> None:
    with redis_server() as server:
        await fetch_and_use(server.url)


async def test_over_tcp() -> None:
    with redis_server() as server:
        async with passed_on(server) as port:
            await fetch_and_use(f"redis://127.0.0.1:{port}")


async def test_over_tls() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    with redis_server() as server:
        async with passed_on(server, context) as port:
            await fetch_and_use(f"rediss://127.0.0.1:{port}?ssl_cert_reqs=none")


async def test_with_a_password_and_a_database() -> None:
    with redis_server(requirepass="secret") as server:
        async with client_of(f"unix://:secret@{server.socket_path}?db=3") as client:
            await client.mset(VALUES)
            assert await get(client, "page") == [VALUES["page"]]
        async with client_of(f"unix://:secret@{server.socket_path}") as client:
            assert await get(client, "page") == [None], "another database"


@pytest.mark.parametrize("leave", [Receiver.eof_received, lambda one: Receiver.connection_lost(one, OSError("reset"))])
async def test_a_server_that_leaves(leave: Callable[[Receiver], object]) -> None:
    receiver = Receiver()
    receiver.replies = Replies(1, 100)
    leave(receiver)
    receiver.connection_lost(None)
    with pytest.raises(ConnectionLost):
        await receiver.replies.whole
    assert receiver.reader.at_eof() or receiver.reader.exception(), "and redis-py's reader knows it"


async def test_a_connection_that_is_lost_already_is_not_waited_for() -> None:
    with redis_server() as server:
        async with client_of(server.url) as client:
            connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
            replies = Replies(1, 100)
            connection._writer.transport.abort()
            for _ in range(2):  # while it is being closed, and afterwards
                with pytest.raises(ConnectionLost), connection.receiving(replies):
                    pytest.fail("there is nobody to ask")
                await asyncio.sleep(0.01)
            await client.connection_pool.release(connection)
